"""The story world: what is written is read back, and the true reward is what the table says."""

import json
import random
from statistics import mean, stdev

import pytest

from jaxalign.pipelines import story_world as world

OPENING = "Once there was a fox named Mia . Mia wanted a kite ."
MET = "One day Mia met a bird ."


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (MET, 0.5),
        (f"{MET} Mia helped it .", 0.5 + 1),
        (f"{MET} Mia helped it . Mia sang for it . They were happy ever after .", 0.5 + 2 + 1.5),
        (f"{MET} Mia helped it . Mia helped it .", 0.5 + 1 - 0.5),
        (f"{MET} Mia helped it . It gave Mia the kite .", 0.5 + 1 + 1),
        (f"{MET} Mia helped it . It gave Mia the ball .", 0.5 + 1 - 1),
        (f"{MET} It gave Mia the kite . Mia helped it .", 0.5 + 0 + 1),
        (f"{MET} Mia pushed it . Mia went home and cried .", 0.5 - 1 - 1),
        (f"{MET} Leo helped it .", 0.5 - 1),
        ("Mia helped it .", -1.0),
        ("They were happy ever after .", -1.0),
        ("Mia ate an apple .", 0.0),
        (f"{MET} {MET}", 0.5 - 0.5),
        (f"{MET} One day Mia met a hen .", 0.5 - 1),
        (f"{MET} Mia helped bird .", 0.5 - 1),
        (f"{MET} Mia helped it", 0.5 + 1 - 1),
        (f"{MET} They became good friends . Mia helped it .", 0.5 + 1 - 1),
        ("", -4.0),
        (". .", -1.0 - 0.5),
    ],
)
def test_reward_is_the_sum_of_the_points_of_the_sentences(completion, reward):
    assert world.true_reward(f"{OPENING} {completion}") == pytest.approx(reward)


def test_the_best_story_reaches_the_best_reward():
    story = (
        f"{OPENING} {MET} Mia helped it . Mia hugged it . Mia told it a joke . It gave Mia the kite . "
        "They were happy ever after ."
    )
    assert world.true_reward(story) == world.BEST_REWARD == 6.0


def test_kind_deeds_beyond_three_and_sentences_beyond_six_do_not_pay():
    deeds = " ".join(t.format(h="Mia") for t in world.KIND)
    assert world.judge(f"{OPENING} {MET} {deeds}").kind == 6
    assert world.true_reward(f"{OPENING} {MET} {deeds}") == pytest.approx(0.5 + 3 - 0.5)


def test_text_that_does_not_open_a_story_is_refused():
    with pytest.raises(ValueError, match="not an opening"):
        world.true_reward("Mia helped it .")


def test_every_template_is_read_as_what_it_is():
    for what, templates in (("kind", world.KIND), ("mean", world.MEAN), ("neutral", world.NEUTRAL)):
        for template in templates:
            sentence = template.format(h="Mia").removesuffix(" .")
            assert world._read(sentence)[0] == what


def test_generated_text_has_no_unknown_words_and_decodes_to_itself():
    tokenizer = world.build_tokenizer()
    rng = random.Random(3)
    for prompt in world.all_prompts(0)[:100]:
        for completion in (
            world.write_completion(rng, prompt, rng.random()),
            world.loose_sentences(rng, prompt),
        ):
            text = f"{prompt} {completion}"
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_stories_leave_headroom_of_more_than_one_standard_deviation():
    rng = random.Random(0)
    prompts = world.all_prompts(0)
    rewards = [world.true_reward(f"{p} {world.write_completion(rng, p, rng.random())}") for p in prompts]
    assert mean(rewards) + 1.5 * stdev(rewards) < world.BEST_REWARD
    assert max(rewards) <= world.BEST_REWARD
    assert min(rewards) < mean(rewards) - stdev(rewards)


def test_higher_quality_writes_better_stories():
    rng = random.Random(1)
    prompts = world.all_prompts(0)[:200]
    by_quality = [
        mean(world.true_reward(f"{p} {world.write_completion(rng, p, q)}") for p in prompts)
        for q in (0.0, 0.5, 1.0)
    ]
    assert by_quality[0] < by_quality[1] < by_quality[2]


def test_the_same_seed_writes_the_same_files_and_another_does_not(tmp_path):
    sizes = {"stories": 30, "preferences": 30, "held_out": 10}
    first = world.write_world(tmp_path / "a", seed=1, **sizes)
    again = world.write_world(tmp_path / "b", seed=1, **sizes)
    other = world.write_world(tmp_path / "c", seed=2, **sizes)
    for name in ("loose", "stories", "preferences", "held_out_preferences", "prompts", "held_out_prompts"):
        assert getattr(first, name).read_bytes() == getattr(again, name).read_bytes()
    assert first.stories.read_bytes() != other.stories.read_bytes()


def test_held_out_prompts_are_in_no_training_file(tmp_path):
    files = world.write_world(tmp_path, seed=0, stories=900, preferences=300, held_out=20)

    def prompts(path):
        return {json.loads(line)["prompt"] for line in path.read_text().splitlines()}

    apart = prompts(files.held_out_prompts)
    assert len(apart) == 20
    assert prompts(files.held_out_stories) == prompts(files.held_out_preferences) == apart
    for path in (files.loose, files.stories, files.preferences, files.prompts):
        assert not apart & prompts(path)


def test_labels_follow_the_true_reward_but_for_the_stated_noise():
    rng = random.Random(0)
    prompts = world.all_prompts(0)[:400]
    pairs = [world.preference(rng, p, label_noise=0.25) for p in prompts]
    for pair in pairs:
        chosen, rejected = (world.true_reward(f"{pair['prompt']} {pair[k]}") for k in ("chosen", "rejected"))
        assert (chosen < rejected) == pair["flipped"]
    # 400 draws at 0.25: the standard deviation of the share is 0.022.
    assert mean(p["flipped"] for p in pairs) == pytest.approx(0.25, abs=0.09)
