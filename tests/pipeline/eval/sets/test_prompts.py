import pytest

from pipeline.eval.sets.prompts import check_templates, fill, prompts_of


def test_each_template_gives_one_prompt_in_order() -> None:
    templates = ["a photo of a {}.", 'the number: "{}"']
    assert prompts_of("7", templates) == ["a photo of a 7.", 'the number: "7"']


def test_braces_in_a_class_name_are_kept() -> None:
    assert fill("a {}.", "{x} {}") == "a {x} {}."


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {c}"])
def test_a_template_without_exactly_one_slot_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"sets/dataset\.json: template .* exactly one"):
        check_templates(["a {}", template], "sets/dataset.json")


def test_an_empty_list_of_templates_is_refused() -> None:
    with pytest.raises(ValueError, match="templates is empty"):
        check_templates([], "sets/dataset.json")
