"""README.md and the annotated configuration say what there is, and nothing that there is not."""

import functools
import re
import subprocess

import pytest

import kit

README = (kit.ROOT / "README.md").read_text()
EXAMPLE = (kit.ROOT / "config" / "pandora.yaml").read_text()


@functools.cache
def helped(binary, *path):
    done = subprocess.run([binary, *path, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout


def subcommands(binary, *path):
    """Those that the help of a command lists."""
    found = re.split(r"\n[A-Z ]*SUBCOMMANDS:\n", helped(binary, *path))[1:]
    return {name for part in found for name in re.findall(r"^  ([a-z]+)\b", part.split("\n\n")[0], re.M)} - {"help"}


def test_every_code_of_a_problem_is_in_the_readme_beside_its_status():
    source = (kit.ROOT / "Sources/GatewayCore/Problems/Refusal.swift").read_text()
    codes = {(code, status) for status, code in re.findall(r'About\(\s*(\d{3}), "([A-Z_]+)"', source)}
    assert len(codes) == len(re.findall(r"^    case \w+ = \d+$", source, re.M))
    told = {(code, status) for statuses, row in re.findall(r"^\| ([\d ]+) \| (.+) \|$", README, re.M)
            for code in re.findall(r"`([A-Z][A-Z_]+)`", row) for status in statuses.split()}
    assert codes <= told and {code for code, _ in told} == {code for code, _ in codes}


def test_every_key_of_the_configuration_is_in_the_example_and_the_readme():
    sources = [file.read_text() for file in (kit.ROOT / "Sources/GatewayCore/Config").glob("*.swift")]
    reads = r"\b%s\.(?:node|text|texts|required|section|list|has|integer|size|duration|bool|choice)\(\"(\w+)\""
    keys = {key for source in sources for key in re.findall(reads % r"(?:top|section)", source)}
    shown = set(re.findall(r"[ {]*\b(\w+):(?: |$)", EXAMPLE, re.M))
    assert {"listen", "ca_file", "max_open", "header"} <= keys <= shown, keys - shown
    top = {key for source in sources for key in re.findall(reads % "top", source)}
    table = README.split("| key | what it does |")[1].split("\n\n")[0]
    assert top == {key.split(".")[0] for key in re.findall(r"^\| `([\w.]+)` \|", table, re.M)}


def test_every_command_is_in_the_readme(binary):
    for name in subcommands(binary):
        assert re.search(rf"pandora (?:[a-z]+\|)*{name}\b", README), name


@pytest.fixture(scope="module")
def spoken():
    """What the README says of commands, as somebody would type it: `pandora a|b …` is two of them."""
    texts = re.findall(r"`(pandora [^`]+)`", README) + re.findall(r"^ {4}(?:sleep 1; )?(pandora [^#\n]+)", README, re.M)
    lines = []
    for text in texts:
        words = text.replace("[", "").replace("]", "").split()[1:]
        choices = [[]]
        for word in words:
            several = word.split("|") if re.fullmatch(r"[a-z]+(\|[a-z]+)+", word) else [word]
            choices = [[*line, one] for line in choices for one in several]
        lines += choices
    return lines


def test_every_command_and_option_of_the_readme_is_there(binary, spoken):
    assert len(spoken) > 20
    for words in spoken:
        path = []
        while words and words[0] in subcommands(binary, *path):
            path.append(words.pop(0))
        assert path or words[0] == "COMMAND", words
        text = helped(binary, *path)
        assert [word for word in words if word.startswith("--") and word not in text] == [], path
