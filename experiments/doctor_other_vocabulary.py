"""A doctor with GPT-2's tokenizer guides stories260K: by bytes and neutral, against exact text and the mean logit.

Claim: through the map a doctor of another vocabulary changes what the patient writes as one of its own vocabulary does.
Command: python experiments/doctor_other_vocabulary.py --shared ../shared --output runs/other_vocabulary [--seeds 0 1 2]
  What is trained and drawn is kept: the same command goes on. It prints the table and writes table.txt.
Doctors: two Llamas of the patient's shape, one with the patient's 512 tokens, one with GPT-2's 50,257, each taught by
  SFT stories as they are (its reference), then stories in which every full stop is an exclamation mark. Judge:
  stories260K taught the latter.
Arms: each doctor by product and by ratio; the one of GPT-2's also as versions before did it, by the exact text of
  tokens and with its mean logit where there is none, and by product with either of the two changed alone.
Figures, of completions after the openings of stories that nobody learned from: the share of exclamation marks among
  them and full stops (of completions that have either), the judge's nats a token, the KL to the patient a completion;
  and, at the full stops of those stories, how far the log odds of a mark against a stop move.
Needs: stories260K, GPT-2's tokenizer and tinystories.jsonl.gz under SHARED/data.
Time: see experiments/LOG.md; most of it are the steps of the doctor with 50,257 tokens.
"""

import argparse
import gzip
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import llmdoctor, models
from jaxalign.data import DataConfig
from jaxalign.evaluation.policy import make_scorer, summed_logps
from jaxalign.evaluation.tables import format_table
from jaxalign.llmdoctor.guided_folders import GuideConfig, load_guided
from jaxalign.models.vocabulary import vocabulary_map
from jaxalign.rollout import Sampler, join_rows
from jaxalign.runs import RunConfig
from jaxalign.training.core.loop import TrainConfig
from jaxalign.training.core.optimizer import OptimizerConfig
from jaxalign.training.core.setup import ModelSource
from jaxalign.training.sft import SFTConfig, train_sft
from jaxalign.uncertainty import estimate_mean

HELD_OUT, OPENING, WRITTEN = 128, 17, 48
BETAS = {"product": (0.25, 0.5, 1.0), "ratio": (0.5, 1.0, 2.0)}
# As much text a row: GPT-2's tokens are longer.
LENGTHS = {"own": 230, "gpt2": 96}


class Places:
    """Where things are, and what is made once."""

    def __init__(self, shared: Path, output: Path) -> None:
        self.patient = shared / "data/models/stories260K"
        self.tokenizers = {"own": self.patient, "gpt2": shared / "data/tokenizers/gpt2"}
        self.output = output
        with gzip.open(shared / "data/stories/tinystories.jsonl.gz", "rt") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        self.held_out = texts[:HELD_OUT]
        output.mkdir(parents=True, exist_ok=True)
        for name, stop in (("stories", "."), ("lessons", "!")):
            rows = [{"text": text.replace(".", stop)} for text in texts[HELD_OUT:]]
            (output / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def taught(
        self, name: str, source: Path, text: str, length: int, seed: int, steps: int, rate: float
    ) -> Path:
        """The export of a model taught `text`: stories or lessons."""
        folder = self.output / f"{name}-{seed}"
        if not (folder / "export" / "config.json").exists():
            config = SFTConfig(
                run=RunConfig(output=str(folder), seed=seed, eval_every=100, sample_rows=0),
                model=ModelSource(path=str(source)),
                data=DataConfig(
                    train=(str(self.output / f"{text}.jsonl"),),
                    template="plain",
                    end_token="none",
                    max_length=length,
                    truncation="cut_completion",
                ),
                train=TrainConfig(batch_size=8, steps=steps),
                optimizer=OptimizerConfig(learning_rate=rate, warmup_ratio=0.1),
            )
            train_sft(config)
        return folder / "export"

    def doctor(self, kind: str, seed: int) -> Path:
        """A Llama with this tokenizer taught stories, then lessons, with its card."""
        words = models.load_tokenizer(self.tokenizers[kind])
        shape = replace(
            models.load_config(self.patient),
            vocab_size=len(words.get_vocab()),
            bos_id=words.bos_token_id,
            eos_ids=(words.eos_token_id,),
            pad_id=-1,
        )
        start = self.output / f"start-{kind}-{seed}"
        if not start.exists():
            made = models.create(shape, key=jax.random.key(seed))
            models.save_pretrained(made, start, tokenizer=words)
        length = LENGTHS[kind]
        reference = self.taught(f"reference-{kind}", start, "stories", length, seed, 200, 3e-3)
        home = self.taught(f"doctor-{kind}", reference, "lessons", length, seed, 60, 1e-3)
        head = llmdoctor.create_value_head(
            shape, models.HeadConfig(), key=jax.random.key(0), ramp=0.0, horizon=1.0
        )
        card = llmdoctor.DoctorCard(patient=str(self.patient), dimension="cheer", reference=str(reference))
        llmdoctor.save_doctor(home, card, head)
        return home


def with_mean_logits(doctor: Any, ids: np.ndarray) -> Any:
    """A doctor of the patient's vocabulary that says what this one says by a map, and its mean logit for the rest.

    The mean of logits is the logit of the mean of the head's rows.
    """
    tokens, known = doctor.params["embed"]["tokens"], (ids >= 0)[:, None]
    found = tokens[jnp.maximum(jnp.asarray(ids), 0)]
    embed = doctor.params["embed"] | {"tokens": jnp.where(known, found, tokens[doctor.config.eos_ids[0]])}
    head = {"weight": jnp.where(known, found, tokens.mean(0))}
    config = replace(doctor.config, vocab_size=len(ids), tied_head=False)
    definition = replace(models.split(doctor)[0], config=config)
    return models.merge(definition, doctor.params | {"embed": embed, "head": head})


def arms(places: Places, patient: Any, seed: int) -> dict[str, Any]:
    """Guided models by name, at beta 1; a name begins with its guidance."""
    homes = {kind: places.doctor(kind, seed) for kind in ("own", "gpt2")}
    words, others = (models.load_tokenizer(places.tokenizers[kind]) for kind in ("own", "gpt2"))
    by_bytes, by_text = vocabulary_map(words, others), np.full(patient.config.vocab_size, -1, np.int32)
    for text, index in words.get_vocab().items():
        by_text[index] = others.get_vocab().get(text, -1)
    model, reference = map(
        models.load_pretrained, (homes["gpt2"], places.output / f"reference-gpt2-{seed}" / "export")
    )
    found = {}
    for guidance in ("product", "ratio"):
        for name, kind in (("own vocabulary", "own"), ("GPT-2's, bytes, neutral (now)", "gpt2")):
            config = GuideConfig(doctor=(str(homes[kind]),), vocabulary="map", guidance=guidance)
            found[f"{guidance}: {name}"] = load_guided(config)[0]
        before = llmdoctor.Doctor(
            with_mean_logits(model, by_text), reference=with_mean_logits(reference, by_text)
        )
        others_by = {"GPT-2's, text, mean logit (before)": before}
        if guidance == "product":
            unknown = others.eos_token_id
            others_by |= {
                "GPT-2's, text, neutral": llmdoctor.Doctor(model, vocabulary=by_text, unknown=unknown),
                "GPT-2's, bytes, mean logit": llmdoctor.Doctor(with_mean_logits(model, by_bytes)),
            }
        for name, doctor in others_by.items():
            found[f"{guidance}: {name}"] = llmdoctor.guide(patient, [doctor], betas=[1.0], guidance=guidance)
    return found


class Measures:
    """What is measured of a model that writes."""

    def __init__(self, places: Places, patient: Any, judge: Any) -> None:
        self.words = models.load_tokenizer(places.patient)
        self.vocabulary = self.words.get_vocab()
        self.patient, self.judge = patient, judge
        self.rows = [self.words(text)["input_ids"][: OPENING + 128] for text in places.held_out]
        self.prompts = [row[:OPENING] for row in self.rows]
        self.score = make_scorer(models.split(patient)[0])
        self.before = self.odds(patient)

    def of(self, model: Any, sampler: Sampler, seed: int) -> dict[str, list[Any]]:
        """Figures, one a completion (one a full stop) each, and texts; the sampler is one of the model's shape."""
        sampler.update(models.split(model)[1])
        done = sampler.generate(self.prompts, max_new_tokens=WRITTEN, key=jax.random.key(seed))
        rows = join_rows(self.prompts, done)
        theirs, judged = (
            summed_logps(self.score, models.split(x)[1], rows) for x in (self.patient, self.judge)
        )
        ours = np.where(done.mask, done.logps, 0.0).astype(np.float64).sum(1)
        texts = done.texts(self.words)
        marks = [(text.count("!"), text.count("!") + text.count(".")) for text in texts]
        return {
            "marks": [some / both for some, both in marks if both],
            "judge": (-judged / np.maximum(done.lengths, 1)).tolist(),
            "kl": (ours - theirs).tolist(),
            "odds": (self.odds(model) - self.before).tolist(),
            "text": texts[:4],
        }

    def odds(self, model: Any) -> np.ndarray:
        """log p("!") - log p(".") before each full stop of the held-out stories, nats."""
        lengths = np.asarray([len(row) for row in self.rows], np.int32)
        tokens = np.zeros((len(self.rows), lengths.max()), np.int32)
        for row, ids in zip(tokens, self.rows, strict=True):
            row[: len(ids)] = ids
        definition, params = models.split(model)
        both = self.vocabulary["!"], self.vocabulary["."]
        parts = [
            np.asarray(difference(definition, params, tokens[i : i + 32], lengths[i : i + 32], both))
            for i in range(0, len(tokens), 32)
        ]
        return np.concatenate(parts)[:, :-1][tokens[:, 1:] == both[1]]


@partial(jax.jit, static_argnames=("definition", "both"))
def difference(definition: Any, params: Any, tokens: Any, lengths: Any, both: tuple[int, int]) -> jax.Array:
    """[B, T]: the log odds of the first of two tokens against the second, after each token."""
    logits = models.merge(definition, params)(tokens, lengths=lengths)
    return logits[..., both[0]] - logits[..., both[1]]


def measured(places: Places, measures: Measures, patient: Any, seed: int) -> dict[str, dict[str, list[Any]]]:
    """Figures of every arm and beta of a seed; kept."""
    file = places.output / f"figures-{seed}.json"
    if not file.exists():
        found = {"patient": measures.of(patient, Sampler(patient), seed)}
        for name, guided in arms(places, patient, seed).items():
            sampler = Sampler(guided)
            for beta in BETAS[name.split(":")[0]]:
                weighed = guided.with_weights(betas=[beta])
                found[f"{name}, beta {beta:g}"] = measures.of(weighed, sampler, seed)
        file.write_text(json.dumps(found))
    return json.loads(file.read_text())


def table(seeds: list[dict[str, dict[str, list[Any]]]]) -> str:
    """Means with 95% intervals over the completions of all seeds; of the share also the least and greatest seed's."""
    rows = []
    for arm in seeds[0]:
        pooled = {
            name: estimate_mean(np.concatenate([seed[arm][name] for seed in seeds]))
            for name in ("marks", "judge", "kl", "odds")
        }
        each = [float(np.mean(seed[arm]["marks"])) for seed in seeds]
        cells = {name: f"{x.mean:.2f} ± {x.high - x.mean:.2f}" for name, x in pooled.items()}
        rows.append(
            {
                "doctor": arm,
                "share of !": cells["marks"],
                "by seed": f"{min(each):.2f}-{max(each):.2f}",
                "log odds moved (nats)": cells["odds"],
                "judge (nats a token)": cells["judge"],
                "KL to the patient (nats)": cells["kl"],
            }
        )
    return format_table(rows)


def main() -> None:
    """Trains, draws and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--output", type=Path, default=Path("runs/other_vocabulary"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    places = Places(arguments.shared.resolve(), arguments.output)
    patient = models.load_pretrained(places.patient)
    judge = models.load_pretrained(places.taught("judge", places.patient, "lessons", 384, 0, 150, 1e-3))
    measures = Measures(places, patient, judge)
    text = table([measured(places, measures, patient, seed) for seed in arguments.seeds])
    (places.output / "table.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
