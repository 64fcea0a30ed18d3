import pytest

from maildrop.assignments import AssignmentError, decode, parse_assignments


def values(source):
    return {assignment.name: assignment.value for assignment in parse_assignments(source)}


def error_of(source):
    with pytest.raises(AssignmentError) as caught:
        parse_assignments(source)
    return str(caught.value)


# -- values --


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ('"double"', "double"),
        ("'single'", "single"),
        ('""', ""),
        ("''", ""),
        ('"# no comment"', "# no comment"),
        ('"a=b; c"', "a=b; c"),
        ('"it\'s"', "it's"),
        ("'say \"so\"'", 'say "so"'),
        (r'"a \"quoted\" word"', 'a "quoted" word'),
        (r'"tab\tend"', "tab\tend"),
        (r'"\x41\u00fc"', "Aü"),
        ('"""three"""', "three"),
        ("'''three'''", "three"),
        ('"""a "b" c"""', 'a "b" c'),
        ('"ü€"', "ü€"),
    ],
)
def test_a_string_has_the_value_that_python_gives_it(literal, value):
    assert values(f"KEY={literal}\n") == {"KEY": value}


@pytest.mark.parametrize("prefix", ["u", "U"])
def test_a_u_before_a_string_changes_nothing(prefix):
    assert values(f'KEY={prefix}"a\\tb"') == {"KEY": "a\tb"}


@pytest.mark.parametrize("prefix", ["r", "R", "ur", "uR", "Ur", "UR"])
def test_an_r_before_a_string_keeps_backslashes(prefix):
    assert values(f'KEY={prefix}"a\\tb\\d"') == {"KEY": "a\\tb\\d"}


@pytest.mark.filterwarnings("error")
def test_an_unknown_escape_means_itself_without_a_warning():
    assert values(r'KEY="C:\maildrop\d"') == {"KEY": r"C:\maildrop\d"}


def test_a_string_in_three_quotes_may_span_lines_and_later_lines_keep_their_numbers():
    assignments = parse_assignments('A="""one\ntwo # no comment\nB=3"""\n\nC=4\n')
    assert [(found.name, found.value, found.line) for found in assignments] == [
        ("A", "one\ntwo # no comment\nB=3", 1),
        ("C", 4, 5),
    ]


def test_a_backslash_at_the_end_of_a_line_continues_a_string():
    assert values('A="one \\\ntwo"\nB=1\n') == {"A": "one two", "B": 1}


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("0", 0),
        ("25", 25),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("1.5E-1", 0.15),
        ("0x1F", 31),
        ("0o640", 0o640),
        ("0b101", 5),
    ],
)
def test_a_number_has_the_value_and_the_type_that_python_gives_it(literal, value):
    found = values(f"KEY={literal}\n")["KEY"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("literal", "value"), [("0600", 0o600), ("00", 0), ("0017", 15)])
def test_a_number_with_a_leading_zero_is_octal(literal, value):
    assert values(f"KEY={literal}") == {"KEY": value}


@pytest.mark.parametrize(("literal", "value"), [("00.5", 0.5), ("012.5", 12.5), ("08.5", 8.5), ("09e1", 90.0)])
def test_a_fraction_with_a_leading_zero_is_decimal(literal, value):
    assert values(f"KEY={literal}") == {"KEY": value}


@pytest.mark.parametrize("literal", ["08", "0190"])
def test_an_octal_number_with_the_digits_8_or_9_is_an_error(literal):
    assert "octal" in error_of(f"KEY={literal}")


def test_a_number_that_is_not_finite_is_an_error():
    assert error_of("A=1\nKEY=1e999") == "line 2: KEY: too large a number"


def test_a_number_with_thousands_of_digits_is_an_error_like_any_other():
    assert error_of("A=1\nKEY=" + "9" * 5000).startswith("line 2: KEY: ")


@pytest.mark.parametrize(("literal", "value"), [("True", True), ("False", False), ("None", None)])
def test_true_false_and_none_are_values(literal, value):
    assert values(f"KEY={literal}\n")["KEY"] is value


@pytest.mark.parametrize(
    "literal",
    [
        "word",
        "true",
        "Nonesuch",
        "-5",
        "+5",
        "1+1",
        "1_000",
        "10L",
        "2j",
        "0x",
        "08x",
        "[1]",
        "(1)",
        "{}",
        'b"bytes"',
        'f"{1}"',
        '"a" + "b"',
        '"a""b"',
        '"a"b',
        '"open',
        "'open",
        '"mixed\'',
        '"two\nlines"',
        '"""never closed',
        '"\\x4"',
        '"nul\0"',
        "__import__('os').getpid()",
        'open("/etc/passwd").read()',
        "",
        "# only a comment",
        "\n1",
        "1; OTHER=2",
        "$HOME",
        "`date`",
    ],
)
def test_anything_else_is_an_error_that_names_line_and_key(literal):
    message = error_of(f"FIRST=1\n\nKEY={literal}\n")
    assert message.startswith("line 3: ")
    assert "KEY" in message or "expected" in message


# -- what stands around the values --


def test_assignments_come_in_the_order_of_the_file_also_repeated_ones():
    found = [(item.name, item.value, item.line) for item in parse_assignments("B=1\nA=2\nB=3\n")]
    assert found == [("B", 1, 1), ("A", 2, 2), ("B", 3, 3)]


def test_the_source_of_a_value_is_what_stands_in_the_file():
    found = [item.source for item in parse_assignments('A=u"x$y"   # why\nB=0600\nC="""a\nb"""\n')]
    assert found == ['u"x$y"', "0600", '"""a\nb"""']


@pytest.mark.parametrize("source", ["", "\n\n", "# a comment without an end", "  \t\r\n# KEY=1\n", "\\\n"])
def test_a_file_may_be_empty(source):
    assert parse_assignments(source) == []


@pytest.mark.parametrize("source", ["KEY=1", "KEY=1\n", "  KEY=1  \n", "KEY=1 # one\n", "KEY=1# one", "# it's\nKEY=1"])
def test_blanks_and_comments_around_an_assignment_do_not_matter(source):
    assert values(source) == {"KEY": 1}


@pytest.mark.parametrize("source", ["KEY =1", "KEY= 1", "KEY\t=\t1"])
def test_python_takes_blanks_around_the_equals_sign(source):
    assert values(source) == {"KEY": 1}


def test_lines_may_end_with_cr_lf():
    source = 'A=1\r\n# comment\r\n\r\nB="two"\r\nC="""three\r\nlines"""\r\nD=None\r\nE=4 # four\r\n'
    assert values(source) == {"A": 1, "B": "two", "C": "three\nlines", "D": None, "E": 4}
    assert [found.line for found in parse_assignments(source)] == [1, 4, 5, 7, 8]


def test_a_string_may_be_continued_in_a_file_with_cr_lf_too():
    assert values('A="one \\\r\ntwo"\r\nB=1\r\n') == {"A": "one two", "B": 1}


@pytest.mark.parametrize("name", ["A", "_a", "MAILDROP_TLS", "key2", "None"])
def test_a_key_is_a_name_of_ascii_letters_digits_and_underscores(name):
    assert values(f"{name}=1") == {name: 1}


@pytest.mark.parametrize("line", ["2KEY=1", "SCHLÜSSEL=1", "K-2=1", "=1", "export K=1", "KEY", "KEY\n=1", "import os"])
def test_a_line_that_is_no_assignment_is_an_error_that_names_it(line):
    assert error_of(f"FIRST=1\n{line}\n").startswith("line 2: expected ")


@pytest.mark.parametrize(
    "line",
    [
        "MAILDROP_PASSWORD=hunter2",
        'MAILDROP_PASSWORD="hunter2',
        'MAILDROP_PASSWORD="my"hunter2"',
        'MAILDROP_PASSWORD="my" hunter2"',
        'MAILDROP_PASSWORD="my" hunter2=1"',
        'MAILDROP_PASSWORD="hunter2" + "x"',
        r'MAILDROP_PASSWORD="hunter2\x4"',
        "MAILDROP_PASSWORD=089hunter2",
    ],
)
def test_no_error_tells_a_value(line):
    message = error_of(line)
    assert message.startswith("line 1: ")
    assert "hunter2" not in message


# -- bytes --


def test_a_file_is_read_as_utf_8():
    assert decode("# Größe\nA='€'".encode()) == "# Größe\nA='€'"


def test_a_byte_order_mark_is_passed_over():
    assert decode(b"\xef\xbb\xbfA=1") == "A=1"


def test_a_file_with_bytes_that_are_not_utf_8_is_read_as_latin_1():
    assert decode(b"# Gr\xf6\xdfe\nA=1") == "# Größe\nA=1"
