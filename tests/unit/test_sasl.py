"""What is said in a login by token, and what of a login must not be repeated."""

import base64

from maildrop import sasl


def test_xoauth2_says_login_and_token_and_answers_an_error_with_nothing():
    said = sasl.xoauth2("site@example.com", "ya29.token", "smtp.example.com", 587)
    assert said() == "user=site@example.com\x01auth=Bearer ya29.token\x01\x01"
    assert said(b'{"status":"401"}') == ""


def test_oauthbearer_says_where_it_is_going_and_answers_an_error_with_one_byte():    # RFC 7628 section 4.1
    said = sasl.oauthbearer("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==", "server.example.com", 587)
    assert base64.b64encode(said().encode()).decode() == (
        "bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9NTg3AWF1dGg9QmVhcmVyIHZGOWRmdDRxbVRjMk52YjNS"
        "bGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
    )
    assert said(b'{"status":"invalid_token"}') == "\x01"


def test_a_login_with_a_comma_or_an_equals_sign_is_escaped():    # RFC 5801 section 4
    assert sasl.oauthbearer("a=b,c", "t", "h", 25)().startswith("n,a=a=3Db=2Cc,")


def test_plain_takes_any_characters():    # RFC 4616 section 2
    assert base64.b64decode(sasl.plain("zöe", "pässwörd")).decode() == "\0zöe\0pässwörd"


def test_a_login_is_known_in_each_shape_that_it_goes_out_in():
    found = sasl.forms("zope", "let me in")
    assert "let me in" in found
    assert base64.b64encode(b"let me in").decode() in found
    assert base64.b64encode(b"\0zope\0let me in").decode() in found


def test_what_is_found_in_any_text_is_no_secret_to_look_for():
    assert "ok" not in sasl.forms("zope", "ok")
