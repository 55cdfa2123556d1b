"""The rehearsal: which commands of the papers' pages it runs, what it makes smaller, and what its random models write.

The rehearsal itself (`make rehearse`) runs beside the tests, see `.ci/run`.
"""

import json
import sys
from pathlib import Path

import pytest
import yaml

from earwise.answers import parse
from earwise.config.recipe import load_recipe
from earwise.config.recipe_files import PACKAGED_RECIPES, find_recipe
from earwise.datasets.sari.chains import Structured, Unstructured
from earwise.datasets.sari.multiple_choice import Questions
from earwise.datasets.teachers.teacher import json_schema
from earwise.engine.base import Prompt, SamplingParams
from earwise.engine.local import LocalEngine
from earwise.models.families import qwen2_audio
from earwise.types import Text, Turn

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from rehearsal import page_commands, random_text_model, reductions, released_files, services, summary  # noqa: E402
from rehearsal.page_commands import PageCommand  # noqa: E402

ADDRESS = "http://127.0.0.1:1"
SCALES = ("paper", "one-gpu", "24gb")
TRAININGS = [
    (page, command) for page in page_commands.pages() for command in page_commands.commands(page) if command.is_training
]


def command(line: str) -> PageCommand:
    """A command of a page."""
    return PageCommand(line, tuple(line.split()))


@pytest.mark.parametrize("path", sorted(PACKAGED_RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_at_the_scale_of_its_paper_is_trained_by_a_page_at_every_scale_it_has(path: Path) -> None:
    profiles = yaml.safe_load(path.read_text(encoding="utf-8")).get("profiles") or {}
    if "paper" not in profiles:
        pytest.skip("no profile `paper`")
    trained = {command.option("--profile") for _, command in TRAININGS if command.recipe == path.stem}
    assert {name for name in SCALES if name in profiles} <= trained


def test_commands_of_another_recipe_of_the_page_are_left_out() -> None:
    left_out = [
        command for command in page_commands.commands("others")
        if page_commands.belongs_to_other(command, "cesar", "others")
    ]  # fmt: skip
    assert left_out and all("ke-omni-r" in one.line or "audio-thinker" in one.line for one in left_out)
    assert all("runs/" in one.line or "train" in one.words for one in left_out), "builders are for all"


def test_a_command_is_made_smaller_in_the_listed_places_only() -> None:
    page = command(
        'accelerate launch --config_file "$(earwise recipe --path fsdp2)" --num_processes 8 -m earwise train r1-aqa '
        "--profile paper --data data --out runs/r1-aqa"
    )
    line, names = reductions.reduced(page, ADDRESS)
    assert line == page.line.replace("processes 8", "processes 2") + " stages.0.max_steps=2 stages.0.save_steps=1"
    assert names == ["processes", "steps"]
    line, names = reductions.reduced(
        command("earwise build sari --teacher http://127.0.0.1:8000/v1 --out data/sari"), ADDRESS
    )
    assert line == f"earwise build sari --teacher {ADDRESS}/v1 --out data/sari --sft 2 --rl 6"
    assert set(names) == {"address", "rows"} <= set(reductions.REDUCTIONS)
    plain = command("earwise evaluate --task mmau --data m.json --max-new-tokens 256 --out runs/x")
    assert reductions.reduced(plain, ADDRESS) == (plain.line, [])


@pytest.mark.parametrize(("page", "training"), TRAININGS, ids=lambda value: getattr(value, "line", value)[-60:])
def test_reduced_settings_are_the_only_differences_from_the_published_recipe(page: str, training: PageCommand) -> None:
    published = reductions.published(training)
    path, _ = find_recipe(str(training.recipe))
    settings = [*reductions.reduced_settings(published, ADDRESS)]
    arguments = {"profile": training.option("--profile"), "arm": training.option("--arm")}
    own = [word for word in training.earwise[2:] if "=" in word]
    ran = load_recipe(path, **arguments, overrides=[*own, *settings]).model_dump(mode="json")
    assert reductions.other_differences(ran, published) == []
    assert all(stage["max_steps"] == reductions.STEPS for stage in ran["stages"])
    changed = load_recipe(path, **arguments, overrides=[*own, *settings, "stages.0.pack_tokens=77", "seed=5"])
    assert reductions.other_differences(changed.model_dump(mode="json"), published) == ["seed", "stages.0.pack_tokens"]


def test_weights_pinned_to_a_commit_are_the_published_ones() -> None:
    recipe = load_recipe(find_recipe("r1-aqa")[0], profile="paper")
    recorded = recipe.model_dump(mode="json")
    recorded["model"]["weights"] = f"Qwen/Qwen2-Audio-7B-Instruct@{'a' * 40}"
    assert reductions.other_differences(recorded, recipe) == []
    recorded["model"]["weights"] = "another"
    assert reductions.other_differences(recorded, recipe) == ["model.weights"]


def test_the_random_model_lies_in_the_released_layout_and_answers_in_the_formats(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    released_files.write_qwen2_audio(folder, "<|im_end|>")
    assert len(list(folder.glob("model-0000?-of-00003.safetensors"))) == released_files.SHARDS
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json",
                 "vocab.json", "merges.txt", "model.safetensors.index.json"):  # fmt: skip
        assert (folder / name).is_file(), name
    engine = LocalEngine(qwen2_audio.load(folder))
    prompts = [Prompt((Turn("user", (Text("What is it?"),)),), (), key=str(number)) for number in range(32)]
    sampled = engine.generate(prompts, SamplingParams(max_new_tokens=64, temperature=1.0, seed=1))
    completions = [draws[0] for draws in sampled]
    answers = [parse(completion.text, random_text_model.OPTIONS).answer for completion in completions]
    assert sum(answer in random_text_model.OPTIONS for answer in answers) > 12
    assert len(set(answers) & set(random_text_model.OPTIONS)) > 2, "rewards differ within a group"


def test_the_stand_in_for_language_models_passes_the_checks_of_its_askers() -> None:
    def request(task: str, schema: type | None) -> dict[str, object]:
        body: dict[str, object] = {"messages": [{"role": "user", "content": task}]}
        if schema is not None:
            body["response_format"] = {"json_schema": {"schema": json_schema(schema)}}
        return body

    questions = services.reply_to(request("What can be heard: rain", Questions))
    Questions.model_validate_json(questions, context={"count": 1, "n_choices": 4})
    task = "Question: what?\nRight answer: a dog\n"
    for schema in (Structured, Unstructured):
        schema.model_validate_json(services.reply_to(request(task, schema)), context={"answer": "a dog"})
    assert 1 <= json.loads(services.reply_to(request("Argument: none", None)))["score"] <= 11


def test_the_page_has_the_table_of_the_recorded_run() -> None:
    result = json.loads((BENCHMARKS / "results" / "rehearsal.json").read_text(encoding="utf-8"))
    assert result["ok"], "a failed rehearsal is mended, not published"
    page = (page_commands.PAGES / "rehearsal.md").read_text(encoding="utf-8")
    table = page.partition(summary.TABLE_BEGIN)[2].partition(summary.TABLE_END)[0]
    assert table.strip().splitlines() == "\n".join(summary.page_table(result)).strip().splitlines()
    assert set(result["reductions"]) == set(reductions.REDUCTIONS) and set(result["pages"]) <= set(
        page_commands.pages()
    )
