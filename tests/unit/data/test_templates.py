"""Templates by name, by import and in a model's own words, equal to what transformers renders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmr1 import templates_cli
from mmr1.chat_template import ChatTemplate
from mmr1.config import RunConfig
from mmr1.errors import ConfigurationError
from mmr1.records import Problem
from mmr1.templates import ANSWERS, QUESTIONS, SYSTEM_PROMPTS, Templates, render, render_answer

CHAT = "{% for m in messages %}{{ m.content if m.content is string else m.content|tojson }}{% endfor %}"
PART = "{{ '<|image_pad|>' if part.type == 'image' else part.text }}"
PADS = "{% for m in messages %}{% for part in m.content %}" + PART + "{% endfor %}{% endfor %}"

MY_QUESTION = "Look: {problem}"
NO_PLACEHOLDER = "Look."


def my_answer(problem: Problem) -> str:
    return f"[{problem.solution}]"


def problem(text: str = "How many?", solution: Any = 3, images: tuple[str, ...] = ("a.png",)) -> Problem:
    return Problem(0, text, solution, images, "counting")


def config(**options: Any) -> RunConfig:
    return RunConfig(model="m", train_file=Path("t.json"), num_steps=1, per_device_batch_size=8, **options)


def test_registered_names() -> None:
    names = {"default", "grounding", "detection", "qwen", "llava", "r1v"}
    names |= {"pr1_grounding", "pr1_counting", "pr1_detection", "pr1_ocr"}
    assert SYSTEM_PROMPTS.keys() == QUESTIONS.keys() == ANSWERS.keys() == names
    assert Templates.from_config(config()) == Templates()
    chosen = Templates.from_config(config(question_template="qwen", answer_template="r1v"))
    assert chosen.question == "{problem}"
    assert render_answer(problem(), chosen) == "<think></think><answer>3</answer>"


def test_published_words() -> None:
    """To the letter, blanks included: models were trained on them."""
    chosen = Templates.from_config(
        config(system_prompt_template="pr1_counting", question_template="pr1_counting", answer_template="pr1_counting")
    )
    text = render(problem("dog"), chosen, ChatTemplate(CHAT + "<|image_pad|>"))
    assert text.startswith("You are a helpful assistant. [")
    assert '"Output all the bounding boxes of the dog"' in text and render_answer(problem(), chosen) == "3"
    assert str(QUESTIONS["pr1_detection"]).count(", ") == 79 and "hair drier, toothbrush." in str(
        QUESTIONS["pr1_detection"]
    )


def test_the_command_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert templates_cli.main([]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in QUESTIONS)
    assert templates_cli.main(["r1v"]) == 0
    shown = capsys.readouterr().out
    assert "How many apples are there?  Output the thinking process" in shown
    assert "<think></think><answer>3</answer>" in shown
    with pytest.raises(ConfigurationError, match="unknown template 'pr1_ocrr'; did you mean pr1_ocr"):
        templates_cli.main(["pr1_ocrr"])


def test_own_templates() -> None:
    here = __name__
    own = Templates.from_config(config(question_template=f"{here}:MY_QUESTION", answer_template=f"{here}:my_answer"))
    assert render(problem(), own, ChatTemplate(PADS)) == "<|image_pad|>Look: How many?"
    assert render_answer(problem(), own) == "[3]"


@pytest.mark.parametrize(
    ("option", "name", "reason"),
    [
        ("question_template", "defualt", "unknown template 'defualt'; did you mean 'default'"),
        ("answer_template", "zzz", "known are default, grounding, detection, qwen, llava, r1v, pr1_grounding"),
        ("system_prompt_template", "no_such_module:x", "cannot be imported"),
        ("system_prompt_template", "json:no_such", "cannot be imported"),
        ("question_template", f"{__name__}:NO_PLACEHOLDER", r"does not contain \{problem\}"),
        ("question_template", f"{__name__}:__file__x", "cannot be imported"),
        ("question_template", "sys:maxsize", "neither a text nor a callable"),
    ],
)
def test_wrong_names(option: str, name: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason) as caught:
        Templates.from_config(config(**{option: name}))
    assert option in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("solution", "text"),
    [(3, "3"), ("cat", "cat"), ([1, 2.5], "[1, 2.5]"), ("<answer> 4 </answer>", "4"), ("{problem}", "{problem}")],
)
def test_answers(solution: Any, text: str) -> None:
    assert render_answer(problem(solution=solution), Templates()) == f"<answer>{text}</answer>"


def test_braces_in_a_problem_stay() -> None:
    text = render(problem("{solution} {0} {x}?"), Templates(question="{problem}"), ChatTemplate(PADS))
    assert text == "<|image_pad|>{solution} {0} {x}?"


def test_placeholders_must_match_the_images() -> None:
    assert render(problem(images=("a", "b")), Templates(), ChatTemplate(PADS)).count("<|image_pad|>") == 2
    with pytest.raises(ConfigurationError, match=r"2 <\|image_pad\|> for 1 images"):
        render(problem("<|image_pad|>?"), Templates(), ChatTemplate(PADS))
    with pytest.raises(ConfigurationError, match=r"0 <\|image_pad\|> for 1 images"):
        render(problem(), Templates(), ChatTemplate(CHAT))


def test_where_a_template_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="no chat template"):
        ChatTemplate.load(tmp_path)
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "config {{ eos_token }}"}]
    tokens = {"eos_token": {"content": "</s>"}, "add_bos_token": True, "chat_template": named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    assert ChatTemplate.load(tmp_path).render([]) == "config </s>"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert ChatTemplate.load(tmp_path).render([]) == "json"
    (tmp_path / "chat_template.jinja").write_text("{% generation %}jinja{% endgeneration %}")
    assert ChatTemplate.load(tmp_path).render([]) == "jinja"

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigurationError, match="hf download some/model"):
        ChatTemplate.load("some/model")
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "chat_template.jinja").write_text("cached")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc\n")
    assert ChatTemplate.load("some/model").render([]) == "cached"


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ raise_exception('no system role') }}", "{{ ''.__class__.__mro__ }}"]
)
def test_templates_that_fail(source: str) -> None:
    with pytest.raises(ConfigurationError, match="chat template of m"):
        ChatTemplate(source, name="m").render([{"role": "user", "content": "x"}])


def says_nothing(problem: Problem) -> None:
    """Forgot its return."""


def expects_a_number(problem: Problem) -> str:
    return str(problem.solution["digits"])


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("says_nothing", "returned NoneType, not a text; return a str"),
        ("expects_a_number", "raised TypeError: 'int' object is not subscriptable; mend it"),
    ],
)
@pytest.mark.parametrize("option", ["system_prompt_template", "question_template", "answer_template"])
def test_a_callable_that_fails_is_named_with_its_option(option: str, attribute: str, reason: str) -> None:
    own = Templates.from_config(config(**{option: f"{__name__}:{attribute}"}))
    with pytest.raises(ConfigurationError) as raised:
        render(problem(), own, ChatTemplate(PADS))
        render_answer(problem(), own)
    where = f"option {option!r}: {__name__}:{attribute} at problem {problem().position} "
    assert str(raised.value) == where + reason
