import json
import math
import random
from itertools import islice

import pytest
import torch

import circuitdb
from circuitdb import ingest
from circuitdb.errors import ModelError, NumericalError, OptionError, PromptError, UnknownNameError
from circuitdb.models import gpt2, lessons, mixture, performance, train
from circuitdb.models.recipe import (
    Architecture,
    Checkpoints,
    Optimisation,
    Repeats,
    Stage,
    Texts,
    TrainRecipe,
)
from circuitdb.models.vocabulary import family_tokenizer, vocabulary, word_lists
from circuitdb.tasks import TASKS, build, get, names, split_of, training_texts

SHAPE = Architecture(n_layers=2, n_heads=2, d_model=16, d_mlp=32, n_context=64)

CUT = {"names": 30, "things": 20, "nouns": 45}


def recipe(**changes):
    repeats = Repeats(lists=("names",), rows=4)
    values = {
        "kind": "train",
        "name": "smoke",
        "seeds": (0, 1),
        "architecture": SHAPE,
        "texts": Texts(pool=100, vocabulary=CUT),
        "stages": (
            Stage(steps=2, repeats=repeats),
            Stage(steps=4, tasks={"gendered_pronoun": 1.0, "months": 2.0}, repeats=repeats),
        ),
        "optimisation": Optimisation(batch=16, warmup=2),
        "checkpoints": Checkpoints(seeds=(1,), steps=(0, 3)),
    }
    return TrainRecipe(**{**values, **changes})


def pools_of(tasks, tokenizer, context=64, **texts):
    return mixture.make_pools(Stage(steps=1, tasks=tasks), Texts(**texts), tokenizer, 0, context)


@pytest.fixture(scope="module")
def tokenizer():
    return family_tokenizer(CUT)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Two seeds in the package's layout, the second with checkpoints."""
    folder = tmp_path_factory.mktemp("embedded")
    lines = []
    report = train.train(recipe(embedded=True), folder, lines.append)
    return folder, report, lines


def file_of(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


GOOD = """
kind: train
name: smoke
seeds: [0]
architecture: {n_layers: 1, n_heads: 1, d_model: 8, d_mlp: 8}
stages:
  - steps: 5
    tasks: {ioi: 1}
"""


def test_logits_are_those_of_transformers_gpt2(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    for tied in (True, False):
        shape = SHAPE.model_copy(update={"tied": tied})
        weights = gpt2.initial(shape, 50, seed=3, std=0.3)
        model = GPT2LMHeadModel(GPT2Config(**gpt2.config(shape, 50, 0))).eval()
        loaded = model.load_state_dict(weights, strict=False)
        assert not loaded.unexpected_keys
        assert loaded.missing_keys == (["lm_head.weight"] if tied else [])
        tokens = torch.randint(50, (3, 11), generator=torch.Generator().manual_seed(0))
        ours = gpt2.unembed(weights, gpt2.hidden(weights, shape, tokens))
        torch.testing.assert_close(ours, model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_padding_on_the_right_changes_nothing_before_it():
    weights = gpt2.initial(SHAPE, 50, seed=3, std=0.3)
    tokens = torch.arange(12).reshape(1, 12)
    whole = gpt2.hidden(weights, SHAPE, tokens)
    torch.testing.assert_close(whole[:, :5], gpt2.hidden(weights, SHAPE, tokens[:, :5]))


def test_positions_start_as_waves_of_the_deviation_of_the_embedding():
    weights = gpt2.initial(SHAPE, 50, seed=0, std=0.3)
    positions = weights["transformer.wpe.weight"]
    assert float(positions.square().mean()) == pytest.approx(0.3**2, rel=1e-4)
    # A shift by one is one rotation wherever it happens, which noise would not give.
    products = positions @ positions.T
    torch.testing.assert_close(products.diagonal(1)[1:], products.diagonal(1)[:-1])


def test_equal_seeds_start_from_equal_weights_and_others_do_not():
    one, same, other = (gpt2.initial(SHAPE, 50, seed, 0.1) for seed in (1, 1, 2))
    for name in one:
        assert torch.equal(one[name], same[name])
    assert not torch.equal(one["transformer.wte.weight"], other["transformer.wte.weight"])


def test_batches_follow_the_weights_of_the_mixture(tokenizer):
    pools = pools_of({"gendered_pronoun": 1.0, "greater_than": 3.0}, tokenizer, pool=50)
    batch = pools.draw(2000, torch.Generator().manual_seed(0))
    several = (batch.answers >= 0).sum(1) > 1  # only greater_than has more than one answer
    assert 0.70 < float(several.double().mean()) < 0.80
    assert bool((batch.tokens[:, 0] == tokenizer.bos_id).all())


def test_chunks_hold_every_text_once_and_cut_only_padding(tokenizer):
    pools = pools_of({"ioi": 1, "months": 1}, tokenizer, pool=40)
    batch = pools.draw(33, torch.Generator().manual_seed(1))

    def texts(part):
        rows = zip(part.tokens.tolist(), part.lengths.tolist(), part.answers.tolist(), strict=True)
        return [(row[:n], [a for a in answers if a >= 0]) for row, n, answers in rows]

    cut = [text for part in batch.chunks(8) for text in texts(part)]
    assert sorted(cut) == sorted(texts(batch))


@pytest.mark.parametrize("task", ["ioi", "months", "subject_verb", "sentiment", "induction"])
def test_no_training_text_is_of_another_split(task, tokenizer):
    plain = Texts(pool=300, prefixed_share=0.0)
    stream = training_texts(get(task), tokenizer, random.Random(0), prefixed=0.0)
    assert {split_of(made.text) for made in islice(stream, 300)} == {"train"}
    held_out = build(get(task), tokenizer, sizes={"train": 0}, bos=True)
    unseen = {r.clean_ids for s in ("validation", "test", "shift") for r in held_out.split(s).rows}
    assert not unseen & {e.ids for e in mixture.examples(get(task), tokenizer, plain, 0)}


def test_a_cut_vocabulary_keeps_what_templates_and_other_lists_need():
    cut = vocabulary(CUT)
    whole = vocabulary({})
    lists = word_lists()
    assert set(lists["names"][:30]) <= set(cut)
    assert lists["names"][40] in whole
    assert lists["names"][40] not in cut
    assert "year" in lists["nouns"][45:]
    assert "year" in cut  # in the templates of greater_than


@pytest.mark.parametrize("name", ["toy-2l", "toy-4l"])
def test_every_task_makes_prompts_in_the_vocabulary_of_a_shipped_recipe(name):
    cut = family_tokenizer(ingest.read_train_recipe(name).texts.vocabulary)
    for task in TASKS:
        prompts = build(task, cut, bos=True)
        assert prompts.split("test").n == 128
        assert prompts.split("shift").n == 64


def test_an_unknown_word_list_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'names'"):
        family_tokenizer({"name": 3})


def test_repeated_words_start_over_where_it_says(tokenizer):
    repeats = Repeats(lists=("names", "nouns"), rows=6, shortest=3, longest=5, before=4)
    source = mixture.make_repeater(repeats, tokenizer, 64)
    generator = torch.Generator().manual_seed(0)
    known = {tokenizer.single(f" {w}") for n in ("names", "nouns") for w in word_lists()[n]}
    for _ in range(20):
        tokens, again = source.draw(generator)
        length = tokens.shape[1] - again
        assert 3 <= length <= 5
        assert torch.equal(tokens[:, again:], tokens[:, again - length : again])
        assert set(tokens[:, 1:].flatten().tolist()) <= known
        assert all(len(set(row[1:again])) == again - 1 for row in tokens.tolist())


def test_repeats_that_need_more_words_than_there_are_are_refused(tokenizer):
    repeats = Repeats(lists=("glad",), longest=10)
    with pytest.raises(PromptError, match="18 different words"):
        mixture.make_repeater(repeats, tokenizer, 64)


def test_repeats_loss_is_taken_from_where_the_words_start_over():
    weights = gpt2.initial(SHAPE, 50, seed=3, std=0.3)
    tokens = torch.tensor([[0, 9, 4, 5, 6, 4, 5, 6]])
    logits = gpt2.unembed(weights, gpt2.hidden(weights, SHAPE, tokens))[0]
    by_hand = [-logits[at].log_softmax(0)[tokens[0, at + 1]] for at in (5, 6)]
    found = lessons.repeats_loss(weights, SHAPE, mixture.Repeated(tokens, 5))
    assert float(found) == pytest.approx(float(sum(by_hand)) / 2, rel=1e-5)


def test_recalls_go_on_as_the_sentence_did_before(tokenizer):
    settings = Texts(pool=60)
    stop = tokenizer.single(".")
    for ids, answers in mixture.recalls(get("mood_stories"), tokenizer, settings, 0):
        end = len(ids) - 1 - ids[::-1].index(stop)
        shown = ids[end + 1 :]
        assert 1 <= len(shown) <= 2
        followers = [
            ids[at + len(shown)]
            for at in range(1, end)
            if ids[at : at + len(shown)] == shown and ids[at - 1] in (stop, tokenizer.bos_id)
        ]
        assert answers[0] in followers


def test_a_text_longer_than_the_context_is_refused(tokenizer):
    with pytest.raises(PromptError, match="does not fit a context of 16"):
        pools_of({"months": 1}, tokenizer, context=16, pool=20)


def test_answer_loss_is_the_cross_entropy_against_equal_shares():
    weights = {"transformer.wte.weight": torch.eye(4)}
    x = torch.tensor([[[9.0, 9, 9, 9], [0.5, 1.0, -1.0, 2.0]]])
    tokens, lengths = torch.zeros(1, 2, dtype=torch.long), torch.tensor([2])
    batch = mixture.Batch(tokens, lengths, torch.tensor([[1, 3, -1]]))
    log_z = math.log(sum(math.exp(v) for v in (0.5, 1.0, -1.0, 2.0)))
    sharp = log_z - (1.0 + 2.0) / 2
    flat = log_z - (0.5 + 1.0 - 1.0 + 2.0) / 4
    found = lessons.answer_loss(weights, x, batch, smoothing=0.2)
    assert float(found) == pytest.approx(0.8 * sharp + 0.2 * flat, rel=1e-5)


def test_every_next_token_is_learned_once_within_a_stride():
    batch = mixture.Batch(
        torch.zeros(2, 6, dtype=torch.long), torch.tensor([6, 3]), torch.zeros(2, 1)
    )
    times = sum(lessons.learned(batch, 4, step).int() for step in range(4))
    assert times.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


def test_the_learning_rate_rises_then_falls_to_a_tenth_in_the_last_stage():
    stage = Stage(steps=100, learning_rate=1.0, tasks={"ioi": 1})
    last = [lessons.rate(stage, step, 10, falls=True) for step in range(101)]
    assert last[0] == pytest.approx(0.1)
    assert max(last) == last[9] == pytest.approx(1.0)
    assert last[100] == pytest.approx(0.1)
    assert sorted(last[10:], reverse=True) == last[10:]
    earlier = [lessons.rate(stage, step, 10, falls=False) for step in range(100)]
    assert earlier[:10] == last[:10]
    assert set(earlier[10:]) == {1.0}


def test_training_records_recipe_files_and_figures(embedded):
    folder, report, lines = embedded
    record = json.loads((folder / "family.json").read_text("utf-8"))
    assert record["recipe_hash"] == report.recipe_hash == recipe(embedded=True).hash
    assert TrainRecipe(**record["recipe"]) == recipe(embedded=True)
    assert report.seeds[0].checkpoints == (6,)
    assert report.seeds[1].checkpoints == (0, 3, 6)
    assert sorted(p.name for p in folder.glob("seed1/*")) == [
        f"step{s}.safetensors" for s in (0, 3, 6)
    ]
    assert set(report.seeds[0].figures) == {"gendered_pronoun", "months"}
    assert report.seeds[0].figures["months"].successor_on_corrupted is not None
    assert report.seeds[0].figures["gendered_pronoun"].successor_on_corrupted is None
    assert any("seed 1 step 0" in line for line in lines)


def test_training_again_gives_the_same_weights(embedded, tmp_path):
    _, report, _ = embedded
    again = train.train(recipe(embedded=True), tmp_path, seeds=[1])
    assert again.seeds[1].files == report.seeds[1].files
    assert again.seeds[1].figures == report.seeds[1].figures


def test_seeds_already_trained_are_read_back_and_not_trained_again(embedded):
    folder, report, _ = embedded
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    lines = []
    assert train.train(recipe(embedded=True), folder, lines.append) == report
    assert len(lines) == 1
    assert lines[0].startswith("smoke: nothing is left to train")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_another_recipe_may_not_write_into_the_same_folder(embedded):
    folder, _, _ = embedded
    with pytest.raises(ModelError, match="name another folder, since weights are never replaced"):
        train.train(recipe(embedded=True, data_seed=9), folder)


def test_weights_that_are_not_those_recorded_are_refused(tmp_path):
    small = recipe(embedded=True, seeds=(0,), checkpoints=Checkpoints())
    train.train(small, tmp_path)
    (tmp_path / "seed0" / "step6.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match="is not the file recorded"):
        train.train(small, tmp_path)


def test_a_seed_the_recipe_does_not_have_is_refused(tmp_path):
    with pytest.raises(OptionError, match="has no seed 7; it has "):
        train.train(recipe(), tmp_path, seeds=[7])


@pytest.mark.slow
def test_seeds_trained_at_once_are_those_trained_one_by_one(embedded, tmp_path):
    _, report, _ = embedded
    both = train.train(recipe(embedded=True), tmp_path, jobs=2)
    assert {s: r.files for s, r in both.seeds.items()} == {
        s: r.files for s, r in report.seeds.items()
    }


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path):
    wild = recipe(
        seeds=(0,),
        checkpoints=Checkpoints(),
        stages=(Stage(steps=50, learning_rate=1e30, tasks={"months": 1}),),
        optimisation=Optimisation(batch=8, warmup=0),
    )
    with pytest.raises(NumericalError, match=r"seed 0: the loss is not finite at step \d+"):
        train.train(wild, tmp_path)


def test_a_recipe_that_is_not_embedded_gives_hugging_face_directories(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = recipe(seeds=(1,))
    report = train.train(plain, tmp_path)
    assert sorted(p.parent.name for p in tmp_path.glob("step*/config.json")) == [
        "step0", "step3", "step6",
    ]  # fmt: skip
    final = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "step6").eval()
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "step0").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path)("Mary is", return_tensors="pt").input_ids
    assert tokens[0, 0] == 0
    assert torch.equal(final(tokens).logits, last(tokens).logits)
    assert not torch.equal(final(tokens).logits, first(tokens).logits)
    assert (tmp_path / "training.json").is_file()
    assert report.seeds[1].figures["months"].n_prompts == 256


def test_successors_lead_from_member_to_member(tokenizer):
    follows = performance.successors("months", tokenizer)
    ids = [tokenizer.single(f" {m}") for m in ("November", "December")]
    assert follows[ids[0]] == ids[1]
    assert follows[ids[1]] == -1
    assert performance.successors("ioi", tokenizer) == {}


def test_a_bigram_lookup_is_caught_on_random_members(tokenizer):
    follows = performance.successors("months", tokenizer)

    def lookup(tokens):
        named = [performance._successor(row, follows) for row in tokens.tolist()]
        wanted = torch.tensor(named)
        return torch.nn.functional.one_hot(wanted.clamp(min=0), tokenizer.vocab_size).float()

    prompts = build(get("months"), tokenizer, sizes={"train": 0}, bos=True).split("test")
    seen = performance._observe(lookup, prompts, "months", tokenizer)
    assert bool(seen.right.all())  # pair accuracy does not notice
    has_one = sum(performance._successor(list(r.corrupted_ids), follows) >= 0 for r in prompts.rows)
    assert int(seen.successor.sum()) == has_one > 0


def test_the_recipe_hash_ignores_which_seeds_are_trained_and_what_is_kept():
    base = recipe()
    assert recipe(seeds=(0, 1, 2)).hash == base.hash
    assert recipe(checkpoints=Checkpoints()).hash == base.hash
    assert recipe(data_seed=1).hash != base.hash


def test_shipped_training_recipes_are_sound():
    for name in ("toy-2l", "toy-4l"):
        read = ingest.read_train_recipe(name)
        assert read.name == name
        assert read.embedded
        assert set(read.tasks) == set(names())


def test_a_recipe_is_read_from_a_path(tmp_path):
    read = ingest.read_train_recipe(file_of(tmp_path, GOOD))
    assert read.steps == 5
    assert read.kept_steps(0) == (5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps: 5", "stepps: 5"), "unknown key 'stages.0.stepps'; did you mean 'steps'?"),
        (("name: smoke", "name: smoke\ncolour: red"), "unknown key 'colour'; known: architecture"),
        (("steps: 5", "steps: 0"), "key 'stages.0.steps': .*found 0"),
        (("seeds: [0]\n", ""), "key 'seeds': Field required"),
        (("    tasks: {ioi: 1}\n", ""), "a stage needs tasks, recall, repeats or text to learn from"),
        (("n_heads: 1", "n_heads: 3"), "d_model 8 is no multiple of n_heads 3"),
        (("kind: train\n", ""), "key 'kind' is missing"),
        (("kind: train", "kind: trian"), "unknown recipe kind 'trian'; did you mean 'train'"),
        (("seeds: [0]", "seeds: [0]\nseeds: [1]"), "key 'seeds' is given twice, again in line 5"),
        (("seeds: [0]", "seeds: [0"), "no valid YAML"),
        (("seeds: [0]", "seeds: [4, 0, 4]"), ":4: key 'seeds': seed 4 is given twice"),
    ],
)  # fmt: skip
def test_a_fault_in_a_recipe_names_file_and_key(change, message, tmp_path):
    path = file_of(tmp_path, GOOD.replace(*change))
    with pytest.raises((OptionError, UnknownNameError), match=message) as caught:
        ingest.read_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_does_not_exist_lists_the_shipped_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'toy-4l'"):
        ingest.read_recipe("toy-4")


def test_a_recipe_of_another_kind_is_told_before_its_keys(tmp_path):
    path = file_of(tmp_path, GOOD.replace("kind: train", "kind: sweep"))
    with pytest.raises(OptionError) as caught:
        ingest.read_train_recipe(path)
    assert str(caught.value) == (
        f"recipe {str(path)!r} is no training recipe, whose kind must be 'train': it is of kind "
        f"'sweep', for 'circuitdb ingest {path}'"
    )


@pytest.mark.parametrize(("kind", "there"), [("train", "toy-2l"), ("sweep", "toys")])
def test_only_recipes_of_the_kind_asked_for_are_suggested(kind, there):
    with pytest.raises(UnknownNameError) as caught:
        ingest.read_recipe("shespear_64x4", kind)
    known = {n for n in ingest.shipped() if ingest.mapping(ingest.shipped()[n])["kind"] == kind}
    assert set(caught.value.known) == known
    assert there in known


@pytest.mark.parametrize("path", ["toy-4.yaml", "recipes/toy-4", "./toy-4"])
def test_a_path_to_no_file_is_told_as_such(path):
    told = f"there is no recipe file '{path}'; did you mean 'toy-4l'"
    with pytest.raises(OptionError, match=told):
        ingest.read_train_recipe(path)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("schedule: 0-80/20", "10: key 'checkpoints.schedule': checkpoint 20 lies beyond the last"),
        ("steps: [3, 9]", r"10: key 'checkpoints.steps': checkpoints \[9\] lie beyond the last"),
        ("seeds: [2]", r"10: key 'checkpoints.seeds': checkpoints for seeds \[2\], which are not"),
    ],
)
def test_a_fault_between_keys_is_told_at_the_line_of_one(more, told, tmp_path):
    path = file_of(tmp_path, f"{GOOD}checkpoints:\n  {more}\n")
    with pytest.raises(OptionError, match=f"{path}:{told}"):
        ingest.read_recipe(path)


def test_a_context_too_short_for_a_task_is_told_with_file_and_key_before_anything_is_written(
    tmp_path,
):
    path = file_of(tmp_path, GOOD.replace("d_mlp: 8", "d_mlp: 8, n_context: 8"))
    told = (
        rf"{path}: a text of \d+ tokens does not fit a context of 8; raise key 'architecture.n_con"
    )
    with pytest.raises(PromptError, match=told):
        circuitdb.open(tmp_path / "c.duckdb").train(path, tmp_path / "out", store=False)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path):
    late = GOOD + "checkpoints: {seeds: [0], steps: [9]}\n"
    with pytest.raises(OptionError, match=r"checkpoints \[9\] lie beyond the last step"):
        ingest.read_recipe(file_of(tmp_path, late))


def test_a_recipe_file_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(OptionError, match="expected a mapping of keys, found list"):
        ingest.read_recipe(file_of(tmp_path, "- 1\n"))
