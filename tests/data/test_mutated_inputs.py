"""Files made or mutated at random: each is read, or refused in one line that names a file; nothing else happens."""

import functools
import re
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retromae_jax.errors import InputError
from tests.readers import READERS, put

EXAMPLES = 150
# What separates and ends things, what is no number or no text, and what is too much of it.
FRAGMENTS = [
    *(b"\n", b"\r", b"\r\n", b"\t", b" ", b",", b'"', b"\\", b"{", b"}", b"[", b"]", b"<", b"\n\n", b"null", b"true"),
    *(b"\x00", b"\x1c", b"\x85", b"\xff", b"\xef\xbb\xbf", b"\xc2\xa0", b"\xe2\x80\xa8", b"\\ud800", b"\xed\xa0\x80"),
    *(b"nan", b"-inf", b"1e999", b"-1", b"0", b"1.5", b"9" * 40, b"9" * 5000, b"[" * 3000, b"../..", b"&#xD800;"),
    *(b'""', b'"x"', b"[]", b"[7]", b'["x", null]', b"{}", b'"\\ud800"', b'[{"type": "x"}]', b"q1", b"d1"),
]
# A value: in JSON a text, a list, an object, else what stands between separators.
VALUE = re.compile(rb'"[^"]*"|\[[^][]*\]|\{[^{}]*\}|[^][{}\s,:"]+')
POSITIONS = st.integers(0, 2**16)
MUTATIONS = st.tuples(
    st.sampled_from(["replace", "value", "cut", "repeat", "flip"]),
    POSITIONS,
    st.integers(0, 12),
    st.sampled_from(FRAGMENTS) | st.binary(max_size=8),
)
CONTENTS = st.binary(max_size=200) | st.lists(MUTATIONS, min_size=1, max_size=3)


def mutated(content: bytes, mutation: tuple[str, int, int, bytes]) -> bytes:
    """Does one thing to a few bytes somewhere, or to a value."""
    kind, position, length, new = mutation
    if kind == "value" and (values := list(VALUE.finditer(content))):
        value = values[position % len(values)]
        return content[: value.start()] + new + content[value.end() :]
    start = position % (len(content) + 1)
    before, those, after = content[:start], content[start : start + length], content[start + length :]
    return {
        "replace": before + new + after,
        "value": new,
        "cut": before,
        "repeat": before + those * 2 + after,
        "flip": before + bytes(byte ^ 1 << position % 8 for byte in those[:1]) + those[1:] + after,
    }[kind]


@pytest.mark.parametrize("name", READERS)
def test_a_file_is_read_or_refused(name, tmp_path_factory):
    reader = READERS[name]
    directory = tmp_path_factory.mktemp(name)
    put(directory, reader.files)
    reader.read(directory)

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(sorted(reader.files)), CONTENTS)
    def read(file, content):
        if isinstance(content, list):
            content = functools.reduce(mutated, content, reader.files[file])
        shutil.rmtree(directory)
        put(directory, reader.files | {file: content})
        try:
            reader.read(directory)
        except InputError as error:
            message = str(error)
            assert str(directory) in message and "\n" not in message and len(message) < 1000, message

    read()
