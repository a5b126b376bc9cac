"""Inputs given as text or JSON are converted to the types that the actions annotate."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Shell

TYPED = """
    import datetime, enum, pathlib
    from typing import Literal
    from asyncflow import WorkflowStep

    class Colour(enum.Enum):
        RED = "red"

    async def report_inputs(
        days: int = 0, share: float = 0.0, deep: bool = False, name: str = "", other=None,
        since: datetime.date = datetime.date(2000, 1, 1), tags: set[str] = frozenset(),
        rows: list[tuple[int, str]] = (), where: pathlib.Path = pathlib.Path("."),
        colour: Colour | None = None, mode: Literal["full", "part"] = "full",
        anything: object = None, strange: Exception = None,
    ):
        return {name: repr(value) for name, value in locals().items()}

    steps = [WorkflowStep("report_inputs", report_inputs)]
    secret = [WorkflowStep("report_inputs", report_inputs)]
"""


def received_inputs(shell: Shell, *options: str, **more: Any) -> dict[str, str]:
    """Run the typed pipeline and return the inputs that its step received."""
    shell.write("typed.py", TYPED)
    result = shell.json("run", "typed:steps", "--quiet", "--no-journal", "--json", *options)
    output: dict[str, str] = result["results"][0]["output"]
    return output


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("days=3", "3"),
        ("share=0.5", "0.5"),
        ("share=2", "2.0"),
        ("deep=true", "True"),
        ("deep=0", "False"),
        ("name=3", "'3'"),
        ("name=", "''"),
        ("name=a=b", "'a=b'"),
        ("other=3", "'3'"),
        ("anything=[]", "'[]'"),
        ("since=2024-06-01", "datetime.date(2024, 6, 1)"),
        ('tags=["x"]', "{'x'}"),
        ('rows=[[1, "a"]]', "[(1, 'a')]"),
        ("mode=part", "'part'"),
        ("colour=red", "<Colour.RED: 'red'>"),
        ("colour=null", "None"),
    ],
)
def test_text_is_converted_to_the_annotated_type(shell: Shell, pair: str, value: str) -> None:
    assert received_inputs(shell, "--input", pair)[pair.partition("=")[0]] == value


def test_text_is_converted_to_a_path(shell: Shell) -> None:
    assert "a/b" in received_inputs(shell, "--input", "where=a/b")["where"]


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("days=many", "input 'days' must be int, such as 3\n"),
        ("days=1.5", "input 'days' must be int, such as 3: Expected `int`, got"),
        ("mode=fast", "input 'mode' must be one of 'full', 'part'\n"),
        (
            "rows=[[1]]",
            "input 'rows' must be list[tuple[int, str]], as JSON: Expected `array` of length 2",
        ),
        ("strange=x", "input 'strange' must be Exception"),
        ("dais=3", "no step takes an input 'dais' (did you mean 'days'?)"),
        ("days", "--input takes NAME=VALUE"),
        ("=3", "--input takes NAME=VALUE"),
    ],
)
def test_an_input_of_another_type_is_wrong_usage(shell: Shell, pair: str, says: str) -> None:
    shell.write("typed.py", TYPED)

    result = shell("run", "typed:steps", "--input", pair, exits=2)

    assert says in result.stderr
    assert not list(shell.directory.glob("*.db"))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("bool", "bool, true or false"),
        ("float", "float, such as 0.5"),
        ("datetime.date", "date, such as 2024-06-01"),
        ("datetime.datetime", "datetime, such as 2024-06-01T12:00:00"),
        ("datetime.time", "time, such as 12:30:00"),
        ("datetime.timedelta", "timedelta, such as P1D or PT30M"),
        ("decimal.Decimal", "Decimal, such as 9.99"),
        ("bytes", "bytes, in Base64"),
        ("uuid.UUID", "UUID, such as 6f1c1e9e-0d0b-4d7e-9a55-0c1c5a1f2b3d"),
        ("int | None", "int, such as 3, or null"),
        ("Colour", "one of 'red', 2"),
        ("Colour | None", "one of 'red', 2, or null"),
        ("Literal['a', 1, None]", "one of 'a', 1, null"),
        ("Annotated[int, 'a number']", "int, such as 3"),
        ("NewType('Days', int)", "int, such as 3"),
        ("NewType('Days', NewType('Count', int))", "int, such as 3"),
        ("TypeVar('Days', bound=int)", "~Days, as JSON"),
        ("list[int]", "list[int], as JSON"),
        ("set[str]", "set[str], as JSON"),
        ("tuple[datetime.date, ...]", "tuple[datetime.date, ...], as JSON"),
        ("list", "list, as JSON"),
        ("dict[str, int]", "dict[str, int], as JSON"),
        ("Point", "Point, as JSON"),
        ("Named", "Named, as JSON"),
    ],
)
def test_a_refusal_describes_the_accepted_type_with_an_example(
    shell: Shell, kind: str, says: str
) -> None:
    shell.write(
        "kinds.py",
        f"""
        import dataclasses, datetime, decimal, enum, uuid
        from typing import Annotated, Literal, NewType, TypedDict, TypeVar
        from asyncflow import WorkflowStep

        class Colour(enum.Enum):
            RED = "red"
            GREEN = 2

        @dataclasses.dataclass
        class Point:
            x: int

        class Named(TypedDict):
            name: str

        async def report_inputs(value: {kind}): ...
        steps = [WorkflowStep("report_inputs", report_inputs)]
        """,
    )

    result = shell("run", "kinds:steps", "--input", "value=hunter2?", exits=2)

    assert result.stderr.endswith(f"Error: input 'value' must be {says}\n")


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("Annotated[str, Meta(pattern='^[A-Z]+$')]", "hunter", "`str` matching regex '^[A-Z]+$'"),
        ("Annotated[str, Meta(pattern='^[A-Z]+$')]", "007", "`str` matching regex '^[A-Z]+$'"),
        ("Annotated[str, Meta(max_length=2)]", "007", "`str` of length <= 2"),
        ("Annotated[str, Meta(min_length=9)] | None", "hunter", "`str` of length >= 9"),
        ("Annotated[int, Meta(ge=9)]", "-70", "`int` >= 9"),
        ("Annotated[list[int], Meta(max_length=1)]", "[7, 7]", "`array` of length <= 1"),
    ],
)
def test_a_refusal_states_the_violated_constraint(
    shell: Shell, kind: str, text: str, says: str
) -> None:
    shell.write(
        "narrow.py",
        f"""
        from typing import Annotated
        from msgspec import Meta
        from asyncflow import WorkflowStep

        async def report_inputs(value: {kind}): ...
        steps = [WorkflowStep("report_inputs", report_inputs)]
        """,
    )

    result = shell("run", "narrow:steps", "--input", f"value={text}", exits=2)

    assert result.stderr.endswith(f": Expected {says}\n")
    assert text not in result.stderr


def test_a_wrong_value_is_not_shown_because_it_may_be_secret(shell: Shell) -> None:
    shell.write("typed.py", TYPED)

    for pair in ("days=hunter2", "mode=hunter2", "colour=hunter2"):
        assert "hunter2" not in shell("run", "typed:steps", "--input", pair, exits=2).stderr


def test_json_inputs_come_from_a_file_or_an_option(shell: Shell) -> None:
    shell.write("inputs.json", '{"days": 1, "share": 1, "name": "file", "rows": [[1, "a"]]}')

    output = received_inputs(
        shell, "--inputs", "inputs.json", "--input-json", '{"days": 2, "since": "2024-06-01"}',
        "--input", "days=3",
    )  # fmt: skip

    assert output["days"] == "3"  # the last option wins
    assert output["share"] == "1.0"
    assert output["name"] == "'file'"
    assert output["rows"] == "[(1, 'a')]"
    assert output["since"] == "datetime.date(2024, 6, 1)"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "--input-json is not JSON"),
        ("[" * 100_000, "--input-json is not JSON"),
        ("[1]", "--input-json must be a JSON object"),
        ('{"days": "3"}', "input 'days' must be int"),
        ('{"dais": 3}', "did you mean 'days'?"),
    ],
)
def test_invalid_json_is_wrong_usage(shell: Shell, text: str, says: str) -> None:
    shell.write("typed.py", TYPED)

    assert says in shell("run", "typed:steps", "--input-json", text, exits=2).stderr


def test_an_input_file_must_be_utf_8(shell: Shell) -> None:
    path = shell.write("inputs.json", "")
    path.write_bytes(b'\xef\xbb\xbf{"days": 2}')
    assert "PASSED" in shell("run", "etl:pipeline", "--inputs", str(path)).stdout

    path.write_bytes('{"days": "é"}'.encode("latin-1"))
    result = shell("run", "etl:pipeline", "--inputs", str(path), exits=2)

    assert "Invalid value for '--inputs': it is not encoded in UTF-8 (at byte 10)" in result.stderr


def test_the_error_of_a_missing_input_names_the_option(shell: Shell) -> None:
    shell.write(
        "needy.py",
        """
        from asyncflow import WorkflowStep
        async def fetch(url: str): ...
        steps = [WorkflowStep("fetch", fetch)]
        """,
    )

    result = shell("run", "needy:steps", "--quiet", exits=3)

    assert "nothing provides parameter 'url' of step 'fetch'" in result.stderr
    assert "give it with --input NAME=VALUE" in result.stderr
    assert result.stdout == ""


MODELS = """
    import dataclasses, pydantic
    from asyncflow import WorkflowStep

    class Line(pydantic.BaseModel):
        article: str = pydantic.Field(alias="sku")
        count: int = pydantic.Field(gt=0)

    class Tags(pydantic.RootModel[list[str]]): ...

    @pydantic.dataclasses.dataclass
    class Point:
        x: int = pydantic.Field(gt=0)

        @pydantic.field_validator("x")
        @classmethod
        def check(cls, x: int) -> int:
            return x + 1

    @dataclasses.dataclass
    class Order:
        lines: list[Line]

    async def report_inputs(
        line: Line = None, lines: list[Line] = (), maybe: Line | None = None, tags: Tags = None,
        order: Order = None, point: Point = None,
    ):
        return {name: repr(value) for name, value in locals().items()}

    steps = [WorkflowStep("report_inputs", report_inputs)]
"""
MODEL_INPUTS = """{
    "line": {"sku": "a", "count": 1}, "lines": [{"sku": "b", "count": 2}], "maybe": null,
    "tags": ["x"], "order": {"lines": [{"sku": "c", "count": 3}]}, "point": {"x": 1}
}"""


@pytest.mark.parametrize("more", [(), ("--input", 'line={"sku": "a", "count": 1}')])
def test_models_are_made_of_json(shell: Shell, more: tuple[str, ...]) -> None:
    shell.write("models.py", MODELS)

    result = shell.json("run", "models:steps", "--json", "--input-json", MODEL_INPUTS, *more)

    assert result["results"][0]["output"] == {
        "line": "Line(article='a', count=1)",
        "lines": "[Line(article='b', count=2)]",
        "maybe": "None",
        "tags": "Tags(root=['x'])",
        "order": "Order(lines=[Line(article='c', count=3)])",
        "point": "Point(x=2)",
    }
    assert shell.json("show", result["run_id"], "--json")["inputs"]["maybe"] == {"output": None}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (
            '{"line": {"sku": "hunter2", "count": 0}}',
            "input 'line' must be Line, as JSON: not a valid Line: count: Input should be "
            "greater than 0\n",
        ),
        ('{"line": {"sku": 3}}', "sku: Input should be a valid string; count: Field required\n"),
        (
            '{"maybe": {"sku": "a", "count": "hunter2"}}',
            "as JSON, or null: not a valid Lin",
        ),
        (
            '{"lines": [{"sku": "hunter2", "count": 1}, {"sku": "a"}]}',
            "input 'lines' must be list[models.Line], as JSON: not a valid Line: count: "
            "Field required - at `$[1]`\n",
        ),
        ('{"tags": ["\\ud800"]}', "input 'tags' must be Tags, as JSON\n"),
        (
            '{"tags": [1]}',
            "input 'tags' must be Tags, as JSON: not a valid Tags: 0: Input should be",
        ),
        (
            '{"point": {"x": 0}}',
            "must be Point, as JSON: not a valid Point: ",
        ),
    ],
)
def test_an_input_that_a_model_refuses_is_wrong_usage(shell: Shell, inputs: str, says: str) -> None:
    shell.write("models.py", MODELS)

    result = shell("run", "models:steps", "--input-json", inputs, exits=2)

    assert says in result.stderr
    assert "hunter2" not in result.stderr


def test_an_input_comes_from_a_variable_or_a_file(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAYS", "3")
    shell.write("name.txt", "a name\n")

    given = ["--input", "days=@env:DAYS", "--input", "name=@name.txt", "--input", "other=@@me"]
    received = received_inputs(shell, *given)

    assert (received["days"], received["name"], received["other"]) == ("3", "'a name'", "'@me'")


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        ("name=@env:NOT_THERE", "input 'name': there is no variable 'NOT_THERE'"),
        (
            "name=@missing",
            "input 'name': can't read the file after @: No such file or directory; write a text "
            "that begins with @ as @@",
        ),
    ],
)
def test_a_variable_or_a_file_that_is_not_there_is_named(
    shell: Shell, pair: str, problem: str
) -> None:
    shell.write("typed.py", TYPED)

    assert problem in shell("run", "typed:steps", "--input", pair, exits=2).stderr
