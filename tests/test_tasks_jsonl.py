"""Tasks from JSONL files: what they may say, and how they fail."""

from __future__ import annotations

import json

import pytest

from circuitdb import tasks
from circuitdb.errors import ModelError, PromptError
from circuitdb.tasks import Tokenizer, toy_tokenizer
from circuitdb.tasks import words as lists


@pytest.fixture(scope="module")
def toy() -> Tokenizer:
    return Tokenizer.from_backend(toy_tokenizer.build(), bos="<|bos|>")


def lines(n: int = 40) -> list[dict[str, object]]:
    return [
        {
            "clean": f"Then {name} went to the store",
            "corrupted": f"Then {name} went to the park",
            "correct": " happy",
            "incorrect": [" sad", " nervous"],
        }
        for name in lists.NAMES[:n]
    ]


@pytest.fixture
def write(tmp_path):
    def written(content, name="mine.jsonl"):
        path = tmp_path / name
        rows = [c if isinstance(c, str) else json.dumps(c) for c in content]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return path

    return written


def test_a_file_is_a_task_with_every_line_in_the_split_of_its_text(write, toy):
    path = write(lines())
    task = tasks.get(str(path))
    assert task.name == "mine"
    made = tasks.build(task, toy)
    assert {row.clean for row in made.rows.rows} == {line["clean"] for line in lines()}
    for row in made.rows.rows:
        assert row.split == tasks.split_of(row.clean)
        assert row.correct_ids == (toy.single("happy"),)
        assert row.incorrect_ids == (toy.single("sad"), toy.single("nervous"))
        assert row.template == "file"
    assert made.split("shift").n == 0
    assert tasks.build(tasks.from_jsonl(path), toy).hash == made.hash


def test_ids_templates_roles_and_bos_are_taken_as_given(write, toy):
    given = [
        {
            "clean": toy.encode(line["clean"]),
            "corrupted": toy.encode(line["corrupted"]),
            "correct": toy.single("happy"),
            "incorrect": [toy.single("sad"), " nervous"],
            "template": "visit",
            "roles": {"NAME": 1, "PLACE": -1},
        }
        for line in lines()
    ]
    made = tasks.build(tasks.from_jsonl(write(["", *given])), toy, bos=True)
    for row in made.rows.rows:
        assert row.clean_ids[0] == toy.bos_id
        assert row.clean == toy.decode(row.clean_ids[1:])
        assert row.roles == {"NAME": 2, "PLACE": 6, "END": 6}
        assert row.template == "visit"
    texts = tasks.build(tasks.from_jsonl(write(lines(), "texts.jsonl")), toy)
    assert {r.clean_ids[1:] for r in made.rows.rows} == {r.clean_ids for r in texts.rows.rows}


def test_sizes_cap_a_file_and_an_empty_split_is_an_error(write, toy):
    made = tasks.build(tasks.from_jsonl(write(lines(100))), toy, sizes={"train": 7})
    assert made.split("train").n == 7
    with pytest.raises(PromptError, match=r"task 'mine' has only 0 distinct"):
        tasks.build(tasks.from_jsonl(write(lines(1))), toy)


def test_too_few_lines_say_how_many_are_needed(write, toy):
    # 64 validation prompts of a fifth of all pairs are 320, 128 test prompts of a fifth 640.
    with pytest.raises(PromptError, match=r"give 20 or more \(640 fill every split\)"):
        tasks.build(tasks.from_jsonl(write(lines(1))), toy)
    with pytest.raises(PromptError, match=r"128 are needed for replicate 1; .*: give 1280 or more"):
        tasks.build(tasks.from_jsonl(write(lines())), toy, replicate=1)


STRANGE = ["clean", "corrupted", "correct", "incorrect"]


@pytest.mark.parametrize("key", STRANGE)
def test_a_line_with_a_word_outside_the_vocabulary_is_left_out_and_reported(key, write, toy):
    strange = {
        "clean": "Then Mary went to the zyzzyva",
        "corrupted": "Then Mary went to the zyzzyva",
        "correct": " zyzzyva",
        "incorrect": [" sad", " zyzzyva"],
    }
    path = write([*lines()[:7], {**GOOD, key: strange[key]}, *lines()[8:]])
    made = tasks.build(tasks.from_jsonl(path), toy)
    assert len(made.rows.rows) == 39
    assert made.rows.dropped == {"a word this tokenizer does not know": [f"{path}:8 'zyzzyva'"]}
    assert all(toy.unknown_id not in (*r.clean_ids, *r.corrupted_ids) for r in made.rows.rows)


def test_a_file_in_words_nobody_knows_is_refused_with_its_lines(write, toy):
    path = write([{**line, "clean": f"zyzzyva {n}"} for n, line in enumerate(lines())])
    with pytest.raises(PromptError, match=rf"{path}:1 'zyzzyva', .*{path}:5 .* and 35 more"):
        tasks.build(tasks.from_jsonl(path), toy)


def test_ids_of_a_file_are_taken_as_they_are_even_the_unknown_token(write, toy):
    unknown = [toy.unknown_id, *toy.encode("went to")]
    given = [
        {**line, "clean": [*unknown, toy.single(name)], "corrupted": [*unknown, toy.single("park")]}
        for name, line in zip(lists.NAMES, lines(), strict=False)
    ]
    assert len(tasks.build(tasks.from_jsonl(write(given)), toy).rows.rows) == 40


def test_a_repeated_prompt_is_used_once_and_reported(write, toy):
    path = write([*lines(), lines()[3]])
    made = tasks.build(tasks.from_jsonl(path), toy)
    assert len(made.rows.rows) == 40
    assert made.rows.dropped == {"the clean prompt stands in the file before": [f"{path}:41"]}


def test_lines_may_leave_corrupted_and_incorrect_out(write, toy):
    bare = [{k: line[k] for k in ("clean", "correct")} for line in lines()]
    made = tasks.build(tasks.from_jsonl(write(bare)), toy)
    assert len(made.rows.rows) == 40
    assert not any(row.has_corrupted or row.incorrect_ids for row in made.rows.rows)
    whole = tasks.build(tasks.from_jsonl(write(lines(), "whole.jsonl")), toy)
    assert all(row.has_corrupted and row.incorrect_ids for row in whole.rows.rows)
    assert whole.hash != made.hash


GOOD = lines(1)[0]
MALFORMED = [
    ("{", "not JSON"),
    ("[1]", r"expected an object, got \[1\]"),
    ({k: v for k, v in GOOD.items() if k != "correct"}, "no 'correct'"),
    ({**GOOD, "answer": " he"}, "unknown key 'answer'; known are clean, correct, corrupted"),
    ({**GOOD, "clean": ""}, "'clean' is a text or a list of token ids, not ''"),
    ({**GOOD, "clean": [3, -1]}, r"'clean' is a text or a list of token ids, not \[3, -1\]"),
    ({**GOOD, "clean": [True]}, "'clean' is a text or a list of token ids"),
    ({**GOOD, "correct": []}, "'correct' is a text, a token id or a list"),
    ({**GOOD, "incorrect": 1.5}, "'incorrect' is a text, a token id or a list of them, not 1.5"),
    ({**GOOD, "template": 3}, "'template' is a name, not 3"),
    ({**GOOD, "roles": {"S": "end"}}, "'roles' maps names to token positions"),
    ({**GOOD, "roles": {"a b": 1}}, "'a b' is no name for a role"),
]


@pytest.mark.parametrize(("line", "message"), MALFORMED)
def test_a_malformed_line_is_named_by_file_and_number(line, message, write):
    path = write([*lines(2), line, *lines(3)[2:]])
    with pytest.raises(PromptError, match=rf"mine\.jsonl:3: {message}"):
        tasks.from_jsonl(path)


UNFIT = [
    ({**GOOD, "corrupted": "Then Mary went"}, "'clean' has 6 tokens and 'corrupted' 3"),
    ({**GOOD, "corrupted": GOOD["clean"]}, "are the same tokens"),
    (
        {**GOOD, "correct": " very happy"},
        r"' very happy' is not one token .* but \['very', 'happy'\]",
    ),
    ({**GOOD, "correct": " sad"}, "'sad' is both correct and incorrect"),
    ({**GOOD, "clean": [1, 2, 3, 4, 5, 10**6]}, "token id 1000000 is beyond"),
    ({**GOOD, "correct": 10**6}, "token id 1000000 is beyond"),
    ({**GOOD, "clean": " "}, "' ' has no tokens"),
    ({**GOOD, "roles": {"S": 6}}, "role 'S' stands at 6, outside the 6 tokens"),
]


@pytest.mark.parametrize(("line", "message"), UNFIT)
def test_a_line_the_tokenizer_cannot_take_is_named_by_file_and_number(line, message, write, toy):
    task = tasks.from_jsonl(write([*lines(2), line]))
    with pytest.raises(PromptError, match=rf"mine\.jsonl:3: .*{message}"):
        tasks.build(task, toy)


def test_a_line_with_a_token_the_model_has_no_row_for_is_named_by_file_and_number(write, toy):
    last = max(toy.encode(f"{GOOD['clean']} {GOOD['corrupted']}"))
    for rows, line in ((last, GOOD), (last + 1, {**GOOD, "correct": last + 1})):
        task = tasks.from_jsonl(write([line]))
        with pytest.raises(
            ModelError, match=rf"mine\.jsonl:1: the token .* has id {rows}, .* only"
        ):
            tasks.build(task, Tokenizer(toy.backend, bos="<|bos|>", rows=rows))


def test_files_that_are_missing_empty_binary_or_named_like_a_task_are_refused(write, tmp_path):
    with pytest.raises(PromptError, match=r"none\.jsonl' cannot be read: No such file") as caught:
        tasks.get(str(tmp_path / "none.jsonl"))
    assert str(caught.value).count("none.jsonl") == 1
    with pytest.raises(PromptError, match="has no lines"):
        tasks.from_jsonl(write([""]))
    (tmp_path / "raw.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PromptError, match=r"raw\.jsonl' cannot be read"):
        tasks.from_jsonl(tmp_path / "raw.jsonl")
    with pytest.raises(PromptError, match="would be called 'ioi', which is another task"):
        tasks.get(str(write(lines(), "ioi.jsonl")))


def test_a_files_task_name_has_no_characters_references_use(write):
    assert tasks.from_jsonl(write(lines(), "my task,v=2.jsonl")).name == "my_task_v_2"
    # Without the file too.
    assert tasks.stored_name("gone/my task,v=2.jsonl") == "my_task_v_2"
    assert tasks.stored_name("months") == "months"
