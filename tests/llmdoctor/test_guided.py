"""A guided model: exponents on next-token distributions, whole rows or one token at a time, under one cache."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import llmdoctor, models
from jaxalign.llmdoctor import Doctor
from jaxalign.models import LoraConfig, ModelConfig
from jaxalign.rollout import Sampler, join_rows

PROMPTS = [[5, 6, 7], [9] * 11, [4, 3, 2, 1, 8], [2, 2]]
KEY = jax.random.key(0)
VOCABULARY = 40
DRAW = {"max_new_tokens": 7, "key": KEY, "stop_tokens": ()}


def tiny(key, *, width=16, layers=2, vocabulary=VOCABULARY, positions=64, kv_heads=1, sharpened=4):
    config = ModelConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=kv_heads,
        head_dim=8,
        max_positions=positions,
        eos_ids=(1,),
    )
    made = models.create(config, key=jax.random.key(key))
    # Matrices of size 0.02 say nearly the same of every token.
    return models.merge(models.split(made)[0], jax.tree.map(lambda x: x * sharpened, made.params))


def adapter(model, key, **settings):
    lora = LoraConfig(enabled=True, **settings)
    leaves = models.create_adapter(model.config, lora, key=jax.random.key(key))
    leaves = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(key + 1), x.shape, x.dtype), leaves
    )
    return models.attach(leaves, lora)


PATIENT, DOCTOR, OTHER = tiny(0, kv_heads=2), tiny(1, width=24, layers=3), tiny(2)
# A map to a doctor that has half of the patient's tokens, in another order.
FEWER = np.where(np.arange(VOCABULARY) % 2 == 0, np.random.default_rng(1).permutation(VOCABULARY), -1)
FIRST, SECOND = adapter(DOCTOR, 3, rank=2), adapter(DOCTOR, 5, rank=4, targets=("q_proj", "down_proj"))


def logps(model, prompts=PROMPTS):
    """[N, T, V] of right-padded prompts, float64."""
    lengths = np.asarray([len(p) for p in prompts], np.int32)
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    definition, params = models.split(model)
    logits = np.asarray(whole_rows(definition, params, tokens, lengths), np.float64)
    inside = np.arange(tokens.shape[1]) < lengths[:, None]
    return normalized(logits)[inside]


@partial(jax.jit, static_argnums=0)
def whole_rows(definition, params, tokens, lengths):
    return models.merge(definition, params)(tokens, lengths=lengths)


def drawn(model, prompts=PROMPTS, *, options=None, **settings):
    # Sampling leans on implicit promotion; what it asks of a model does not.
    with jax.numpy_dtype_promotion("standard"):
        return Sampler(model, **(options or {})).generate(prompts, **(DRAW | settings))


def normalized(x):
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def with_adapter(model, adapter):
    return models.merge_adapter(model, adapter)


def test_product_multiplies_powers_of_the_distributions():
    guided = llmdoctor.guide(PATIENT, [Doctor(DOCTOR), Doctor(OTHER)], alpha=0.7, betas=[0.5, 2.0])
    expected = normalized(0.7 * logps(PATIENT) + 0.5 * logps(DOCTOR) + 2.0 * logps(OTHER))
    np.testing.assert_allclose(logps(guided), expected, atol=2e-5)


@pytest.mark.long
def test_ratio_divides_by_what_the_doctor_began_as():
    # Of milder models, whose rounding is far below the bound on every processor.
    patient, start = tiny(0, kv_heads=2, sharpened=2), tiny(1, width=24, layers=3, sharpened=2)
    trained = with_adapter(start, FIRST)
    doctors = [Doctor(trained, reference=start), Doctor(start, adapter=FIRST)]
    expected = normalized(logps(patient) + 1.5 * (logps(trained) - logps(start)))
    for doctor in doctors:
        guided = llmdoctor.guide(patient, [doctor], betas=[1.5], guidance="ratio")
        np.testing.assert_allclose(logps(guided), expected, atol=2e-5)
    assert np.abs(expected - normalized(logps(patient))).max() > 1


@pytest.mark.long
def test_a_reference_that_is_the_patient_is_not_computed_again():
    patient = tiny(1, width=24, layers=3, sharpened=2)
    apart = models.merge(*models.split(patient))
    for doctor, same in (
        (Doctor(patient, adapter=FIRST), Doctor(apart, adapter=FIRST)),
        (Doctor(DOCTOR, reference=patient), Doctor(DOCTOR, reference=apart)),
    ):
        settings = {"alpha": 0.8, "betas": [0.3, 0.5], "guidance": "ratio"}
        known = llmdoctor.guide(patient, [Doctor(DOCTOR, FIRST), doctor], **settings)
        unknown = llmdoctor.guide(patient, [Doctor(DOCTOR, FIRST), same], **settings)
        count = sum(expert.members for expert in known.definition.experts)
        assert count == sum(expert.members for expert in unknown.definition.experts) - 1
        np.testing.assert_allclose(logps(known), logps(unknown), atol=2e-5)
        alone = known.with_weights(alpha=1.0, betas=[0.0, 0.0])
        np.testing.assert_array_equal(logps(alone), logps(patient))


@pytest.mark.long
def test_what_is_not_plausible_to_the_patient_is_never_written_and_the_rest_keeps_its_odds():
    guided = llmdoctor.guide(PATIENT, [Doctor(DOCTOR)], betas=[3.0])
    free, patient = logps(guided), logps(PATIENT)
    kept = patient >= patient.max(-1, keepdims=True) + np.log(0.2)
    assert 0.02 < kept.mean() < 0.9
    # The doctor would have written others.
    assert (free.argmax(-1) != np.where(kept, free, -np.inf).argmax(-1)).any()
    found = logps(guided.with_weights(plausibility=0.2))
    np.testing.assert_allclose(found[kept], normalized(np.where(kept, free, -1e30))[kept], atol=2e-5)
    assert found[~kept].max() < -1e20
    certain = drawn(guided.with_weights(plausibility=1.0))
    assert certain.tokens.tolist() == drawn(PATIENT, temperature=0.0).tokens.tolist()


@pytest.mark.long
@pytest.mark.parametrize("guidance", [pytest.param("product", marks=pytest.mark.slow), "ratio"])
def test_adapters_on_one_model_are_computed_together_and_give_what_they_give_alone(guidance):
    together = llmdoctor.guide(
        PATIENT, [Doctor(DOCTOR, FIRST), Doctor(DOCTOR, SECOND)], betas=[0.5, 1.5], guidance=guidance
    )
    assert [e.members for e in together.definition.experts] == [2 if guidance == "product" else 3]
    alone = llmdoctor.guide(
        PATIENT,
        [Doctor(with_adapter(DOCTOR, x), reference=DOCTOR) for x in (FIRST, SECOND)],
        betas=[0.5, 1.5],
        guidance=guidance,
    )
    np.testing.assert_allclose(logps(together), logps(alone), atol=5e-5)
    found = [drawn(m, num_samples=2) for m in (together, alone)]
    assert found[0].token_lists() == found[1].token_lists()
    np.testing.assert_allclose(found[0].logps, found[1].logps, atol=1e-4)


@pytest.mark.long
def test_with_beta_0_the_patient_writes_bit_for_bit():
    found_by = Doctor(OTHER, vocabulary=FEWER)
    guided = llmdoctor.guide(
        PATIENT, [Doctor(DOCTOR), Doctor(DOCTOR, FIRST), found_by], betas=[0.0, 0.0, 0.0]
    )
    for temperature in (1.0, 0.0):
        found = [drawn(m, temperature=temperature) for m in (guided, PATIENT)]
        assert found[0].token_lists() == found[1].token_lists()
        np.testing.assert_array_equal(found[0].logps, found[1].logps)


def test_a_doctor_without_weight_may_say_anything():
    broken = models.merge(
        models.split(DOCTOR)[0], jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), DOCTOR.params)
    )
    for vocabulary in (None, FEWER):
        guided = llmdoctor.guide(PATIENT, [Doctor(broken, vocabulary=vocabulary)], betas=[0.0])
        np.testing.assert_array_equal(logps(guided), logps(PATIENT))


@pytest.mark.long
def test_with_alpha_0_and_beta_1_the_doctor_writes():
    guided = llmdoctor.guide(PATIENT, [Doctor(DOCTOR)], alpha=0.0, betas=[1.0])
    found = [drawn(m) for m in (guided, DOCTOR)]
    assert found[0].token_lists() == found[1].token_lists()
    np.testing.assert_allclose(found[0].logps, found[1].logps, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("guidance", [pytest.param("product", marks=pytest.mark.slow), "ratio"])
def test_log_probs_while_decoding_are_those_of_the_whole_rows(guidance):
    guided = llmdoctor.guide(
        PATIENT,
        [Doctor(DOCTOR, FIRST), Doctor(DOCTOR, SECOND), Doctor(OTHER, reference=tiny(7))],
        betas=[1.0, 0.5, 2.0],
        guidance=guidance,
    )
    done = drawn(guided)
    rows = join_rows(PROMPTS, done)
    whole = iter(logps(guided, [row[:n] for row, n in zip(rows.tokens, rows.lengths, strict=True)]))
    for row, length, counted, found in zip(rows.tokens, rows.lengths, rows.mask, done.logps, strict=True):
        states = [next(whole) for _ in range(length)]
        expected = [states[t - 1][row[t]] for t in np.flatnonzero(counted)]
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.long
def test_samples_do_not_depend_on_the_batch():
    guided = llmdoctor.guide(
        PATIENT, [Doctor(DOCTOR, FIRST), Doctor(DOCTOR, SECOND)], betas=[1.0, 0.5], guidance="ratio"
    )
    settings = {"max_new_tokens": 12, "num_samples": 2, "stop_tokens": None}
    wide = drawn(guided, **settings)
    # Few slots and short blocks: rows are compacted, refilled and moved.
    narrow = drawn(guided, **settings, options={"max_rows": 2, "block": 3})
    assert wide.token_lists() == narrow.token_lists()


@pytest.mark.long
def test_other_weights_compile_nothing(compiled):
    guided = llmdoctor.guide(PATIENT, [Doctor(DOCTOR), Doctor(OTHER)], betas=[1.0, 0.0])
    with jax.numpy_dtype_promotion("standard"):
        sampler = Sampler(guided)
        before = sampler.generate(PROMPTS, **DRAW)
        other = guided.with_weights(alpha=0.5, betas=[0.0, 3.0])
        compiled.clear()
        sampler.update(models.split(other)[1])
        after = sampler.generate(PROMPTS, **DRAW)
    assert not compiled
    assert before.token_lists() != after.token_lists()


@pytest.mark.long
def test_8_bit_weights_are_the_patients_alone():
    guided = llmdoctor.guide(PATIENT, [Doctor(DOCTOR)], alpha=0.0, betas=[1.0])
    rounded, plain = (drawn(guided, options={"weights": w}) for w in ("int8", "same"))
    np.testing.assert_array_equal(rounded.logps, plain.logps)
    guided = guided.with_weights(alpha=1.0, betas=[0.0])
    rounded, plain = (drawn(guided, options={"weights": w}) for w in ("int8", "same"))
    assert (rounded.logps[:, 0] != plain.logps[:, 0]).all()


@pytest.mark.slow
def test_an_8_bit_cache_changes_log_probs_little():
    patient, doctor = tiny(0, kv_heads=2, sharpened=3), tiny(1, width=24, layers=3, sharpened=3)
    guided = llmdoctor.guide(patient, [Doctor(doctor, FIRST), Doctor(doctor, SECOND)], betas=[0.5, 0.5])
    plain, rounded = (drawn(guided, options={"cache": c}) for c in ("same", "int8"))
    # Up to where a row first draws another token; its first one comes from the prompt alone.
    same = np.logical_and.accumulate(plain.tokens == rounded.tokens, axis=1)
    assert same[:, 0].all()
    assert same.sum() > 2 * len(PROMPTS)
    differences = np.abs(plain.logps - rounded.logps)
    assert differences[:, 0].max() == 0
    assert 0 < differences[same].max() < 0.2


@pytest.mark.long
def test_a_doctor_with_another_vocabulary_is_read_through_its_map():
    order = np.random.default_rng(0).permutation(VOCABULARY)  # the patient's token order[i] is the doctor's i
    params = DOCTOR.params
    tokens = params["embed"]["tokens"][jnp.asarray(order)]
    mixed = models.merge(models.split(DOCTOR)[0], params | {"embed": params["embed"] | {"tokens": tokens}})
    vocabulary = np.argsort(order)
    guided = llmdoctor.guide(PATIENT, [Doctor(mixed, vocabulary=vocabulary)], betas=[1.0])
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(
            logps(llmdoctor.guide(PATIENT, [Doctor(mixed)], betas=[1.0])), logps(guided)
        )
    plain = llmdoctor.guide(PATIENT, [Doctor(DOCTOR)], betas=[1.0])
    np.testing.assert_allclose(logps(guided), logps(plain), atol=2e-5)
    assert drawn(guided).token_lists() == drawn(plain).token_lists()


def spoken(doctor, vocabulary):
    """What a doctor says of the patient's tokens in PROMPTS[1:2], read through a map that has all of its tokens."""
    prompt = [int(vocabulary[token]) for token in PROMPTS[1]]
    return np.where(vocabulary >= 0, logps(doctor, [prompt])[:, np.maximum(vocabulary, 0)], 0.0)


def neutral(patient, said, known, alpha, plausible):
    """float64: what is said, and of tokens that are not known the log of its mean over those that are."""
    weights = np.where(known & plausible, np.exp(alpha * patient), 0.0)
    mean = (weights * np.exp(np.where(known, said, 0.0))).sum(-1) / weights.sum(-1)
    return np.where(known, said, np.log(mean)[:, None])


def doctors_of(guidance):
    """Doctors of two maps, two of them of one, and one without; what each says, and by which map."""
    later = np.where(np.arange(VOCABULARY) > 8, np.random.default_rng(2).permutation(VOCABULARY), -1)
    maps = (FEWER, FEWER, later, None)
    # In front, that the prompt is known to all: what stands for the unknown is another test's.
    maps = [None if x is None else np.where(np.arange(VOCABULARY) == 9, 3, x) for x in maps]
    maps[1] = maps[0]
    start = tiny(7, sharpened=2)
    trained = [DOCTOR, tiny(8, sharpened=2), OTHER, tiny(9, sharpened=2)]
    doctors = [Doctor(x, reference=start, vocabulary=m) for x, m in zip(trained, maps, strict=True)]
    said = []
    for model, vocabulary in zip(trained, maps, strict=True):
        through = np.arange(VOCABULARY) if vocabulary is None else vocabulary
        said.append(spoken(model, through) - (guidance == "ratio") * spoken(start, through))
    return doctors, said, maps


@pytest.mark.parametrize("plausibility", [0.0, 0.02])
@pytest.mark.parametrize("guidance", ["product", "ratio"])
def test_to_tokens_that_doctors_have_not_they_are_neutral(guidance, plausibility):
    doctors, said, maps = doctors_of(guidance)
    alpha, betas = 0.8, (0.5, 1.2, 0.7, 0.9)
    guided = llmdoctor.guide(
        PATIENT, doctors, alpha=alpha, betas=betas, guidance=guidance, plausibility=plausibility
    )
    patient = logps(PATIENT, PROMPTS[1:2])
    plausible = patient >= patient.max(-1, keepdims=True) + (
        np.log(plausibility) if plausibility else -np.inf
    )
    known = [None if x is None else x >= 0 for x in maps]
    total = alpha * patient + betas[3] * said[3]
    total += neutral(patient, betas[0] * said[0] + betas[1] * said[1], known[0], alpha, plausible)
    total += neutral(patient, betas[2] * said[2], known[2], alpha, plausible)
    expected = normalized(np.where(plausible, total, -1e30))
    found = logps(guided, PROMPTS[1:2])
    np.testing.assert_allclose(found[plausible], expected[plausible], atol=5e-5)


@pytest.mark.parametrize("guidance", ["product", "ratio"])
def test_doctors_of_one_map_leave_known_and_unknown_the_odds_of_the_patient(guidance):
    doctors, _, maps = doctors_of(guidance)
    guided = llmdoctor.guide(PATIENT, doctors[:2], betas=[1.5, 2.0], guidance=guidance)
    known, found, patient = maps[0] >= 0, np.exp(logps(guided)), np.exp(logps(PATIENT))
    assert 0.2 < patient[:, known].sum(-1).mean() < 0.8
    np.testing.assert_allclose(found[:, known].sum(-1), patient[:, known].sum(-1), atol=1e-5)
    # Among the unknown too; among the known the doctors decide.
    np.testing.assert_allclose(
        normalized(np.log(found[:, ~known])), normalized(np.log(patient[:, ~known])), atol=5e-5
    )
    assert np.abs(normalized(np.log(found[:, known])) - normalized(np.log(patient[:, known]))).max() > 0.5


def test_adapters_of_one_map_are_computed_together_and_weigh_as_they_do_alone():
    settings = {"betas": [0.5, 1.5], "guidance": "ratio"}
    together = llmdoctor.guide(
        PATIENT, [Doctor(DOCTOR, x, vocabulary=FEWER) for x in (FIRST, SECOND)], **settings
    )
    assert [e.members for e in together.definition.experts] == [3]
    alone = [
        Doctor(with_adapter(DOCTOR, x), reference=DOCTOR, vocabulary=FEWER.copy()) for x in (FIRST, SECOND)
    ]
    np.testing.assert_allclose(logps(together), logps(llmdoctor.guide(PATIENT, alone, **settings)), atol=5e-5)


def test_a_token_that_the_doctor_has_not_is_read_as_its_unknown_token():
    vocabulary = np.arange(VOCABULARY)
    vocabulary[7] = -1
    read = [
        logps(llmdoctor.guide(PATIENT, [Doctor(DOCTOR, vocabulary=v, unknown=3)], betas=[1.0]), [[2, 7, 5]])
        for v in (vocabulary, np.where(vocabulary < 0, 3, vocabulary))
    ]
    others = np.arange(VOCABULARY) != 7
    np.testing.assert_allclose(
        read[0][2][others] - read[0][2][0], read[1][2][others] - read[1][2][0], atol=2e-5
    )


def test_vocabularies_and_positions_are_what_all_have():
    guided = llmdoctor.guide(PATIENT, [Doctor(tiny(1, vocabulary=48, positions=32))], betas=[1.0])
    assert (guided.config.vocab_size, guided.config.max_positions) == (VOCABULARY, 32)
    assert logps(guided).shape[-1] == VOCABULARY
    done = drawn(guided, [[3] * 20], max_new_tokens=12)
    assert done.tokens.max() < VOCABULARY


def test_what_a_sampler_is_given_can_be_split_and_merged():
    guided = llmdoctor.guide(PATIENT, [Doctor(DOCTOR)], betas=[1.0])
    definition, params = models.split(guided)
    assert hash(definition) == hash(replace(definition))
    np.testing.assert_array_equal(logps(models.merge(definition, params)), logps(guided))


@pytest.mark.parametrize(
    ("doctors", "options", "words"),
    [
        ([], {"betas": []}, "at least one doctor"),
        ([Doctor(DOCTOR)], {"betas": [-0.1]}, r"betas must be non-negative and finite, got \[-0.1"),
        ([Doctor(DOCTOR)], {"betas": [1.0, 1.0]}, "one for each of 1 doctors"),
        ([Doctor(DOCTOR)], {"betas": [float("nan")]}, "betas must be non-negative"),
        ([Doctor(DOCTOR)], {"betas": [1.0], "alpha": -1.0}, "alpha must be non-negative"),
        (
            [Doctor(DOCTOR)],
            {"betas": [1.0], "guidance": "ratio"},
            "doctor 0 has neither an adapter nor a ref",
        ),
        ([Doctor(DOCTOR)], {"betas": [1.0], "guidance": "sum"}, "product or ratio"),
        (
            [Doctor(DOCTOR, vocabulary=np.arange(40)), Doctor(OTHER, vocabulary=np.arange(39))],
            {"betas": [1.0, 1.0]},
            r"differ in size: \[39, 40\]",
        ),
    ],
)
def test_what_cannot_guide_is_refused_by_name(doctors, options, words):
    with pytest.raises(ValueError, match=words):
        llmdoctor.guide(PATIENT, doctors, **options)
