"""The configurations shipped with the package are ones that their commands read."""

import pytest

from jaxalign.config import parse, shipped_configs
from jaxalign.llmdoctor.tfpo_config import TFPOConfig
from jaxalign.pipelines.compare_config import CompareConfig
from jaxalign.pipelines.pipeline import PipelineConfig
from jaxalign.training.preference.dpo import DPOConfig
from jaxalign.training.reward_model.trainer import RewardConfig
from jaxalign.training.rl.grpo import GRPOConfig
from jaxalign.training.rl.online_dpo import OnlineDPOConfig
from jaxalign.training.rl.ppo_config import PPOConfig
from jaxalign.training.sft import SFTConfig

READERS = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "process_reward": RewardConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
    "online_dpo": OnlineDPOConfig,
    "openai2019": PPOConfig,
    "tldr2024": PPOConfig,
    "pipeline": PipelineConfig,
    "compare": CompareConfig,
    "hh_rlhf": TFPOConfig,
    "pku_saferlhf": TFPOConfig,
    "weak_to_strong": TFPOConfig,
}


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_a_shipped_configuration_parses(name):
    assert isinstance(parse(READERS[name], name), READERS[name])


def test_the_presets_hold_the_settings_of_the_literature():
    openai, tldr = parse(PPOConfig, "openai2019"), parse(PPOConfig, "tldr2024")
    assert (openai.sampling.temperature, tldr.sampling.temperature) == (0.7, 0.7)
    assert (openai.optimizer.learning_rate, tldr.optimizer.learning_rate) == (1e-5, 3e-6)
    assert (openai.kl.controller, openai.kl.coefficient, openai.kl.target) == ("adaptive", 0.15, 6.0)
    assert (tldr.kl.controller, tldr.kl.coefficient) == ("fixed", 0.05)
    assert openai.reward.whiten
    assert not tldr.reward.whiten
    assert tldr.critic.init == "reward"
    # OpenAI's value head is on the policy's trunk and starts at zero; the other's critic is a model of its own.
    assert (openai.critic.shared_trunk, tldr.critic.shared_trunk) == (True, False)
    assert openai.critic.head.init_std == 0
    assert tldr.critic.optimizer.epsilon == 1e-5
    assert openai.optimizer.epsilon == tldr.optimizer.epsilon == 1e-5
    assert tldr.optimizer.schedule == "cosine"
