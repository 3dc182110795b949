"""Numbers as they are written: every form is read, the marked one counts, and JSON's values come back."""

import json
from fractions import Fraction

import pytest

from hf_tfm.core.errors import InputError
from hf_tfm.data.records import Records
from hf_tfm.tasks.rewards import read_verifier
from hf_tfm.tasks.written_numbers import WrittenNumber, final_number, find_numbers, read_number


pytestmark = pytest.mark.quick

FORMS = {
    "42": 42,
    "so 3 + 4 = 7.": 7,
    "-1,200.50 in all": "-1200.5",
    "1,234,567": 1_234_567,
    "1e-05": "0.00001",
    "1.5E+3 m": 1500,
    "6.02 × 10^23": 602 * 10**21,
    r"$2 \times 10^{-3}$": "0.002",
    "10^5": 100_000,
    ".5": "0.5",
    "−5": -5,  # U+2212
    "It is -5": -5,
    "(-5)": -5,
    "$3.50": "3.5",
    "-$3.50": "-3.5",
    "$-3.50": "-3.5",
    "3 €": 3,
    "3/4": "0.75",
    "-3/4 of it": "-0.75",
    r"\frac{3}{4}": "0.75",
    r"\dfrac{-3}{4}": "-0.75",
    r"1{,}234": 1234,
    r"12\,345": 12345,
    "12\u202f345": 12345,
    "10-20": 20,
    "5 - 3": 3,
    "- 5 apples": 5,
    "1, 2": 2,
    "1,2,3": 3,
    "on 1/2/2024": 2024,
    "x2": 2,
    "7km": 7,
    "She has 5.\n#### 1,080": 1080,
    "#### 42\nI checked it in 3 steps.": 42,
    "#### $42 for 3 days": 42,
    "#### 41\nNo:\n#### 42": 42,
    r"so \boxed{7}, for 2 reasons": 7,
    r"\boxed{\frac{1}{2}} and 3": "0.5",
    r"\boxed{7\text{ cm}^{2}}": 7,
    "#### none": None,
    "no idea": None,
    "3/0": None,
    "9" * 5000: None,
    "1e999999999999": 999999999999,  # no number of ours: what is left of it is the last number
}


@pytest.mark.parametrize("text", FORMS)
def test_the_number_of_an_answer(text):
    value = FORMS[text]
    assert final_number(text) == (None if value is None else WrittenNumber(Fraction(value)))


@pytest.mark.parametrize("value", [1e-05, 1e22, -0.1, 0, -7, 123456789012, 1.5e300, 5e-324, 2**70, "1,234.5", "−5"])
def test_a_value_of_json_comes_back(value):
    value = json.loads(json.dumps(value))
    number = read_number(value)
    assert number and (isinstance(value, str) or float(number.value) == value)
    assert number.is_same(final_number(f"The answer is {value}.")) and number.is_same(final_number(f"#### {value}"))
    assert not number.is_same(final_number("It is -4")) and not number.is_same(final_number("so"))


def test_a_percent_sign_is_a_unit_or_a_hundredth():
    half, fifty, percent = (final_number(text) for text in ("0.5", "50", "50%"))
    assert percent.is_same(half) and percent.is_same(fifty) and half.is_same(percent) and percent.is_same(percent)
    assert not half.is_same(fifty) and not percent.is_same(final_number("0.5%"))
    assert final_number(r"50\% of 8 or \boxed{50\%}") == percent


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), True, None, "", "(", "3 or 4", "12:30", "3,50", "#### x"]
)
def test_a_value_that_is_not_one_number_is_refused(value):
    assert read_number(value) is None
    if value is not None:
        records = Records([{"answer": 1}, {"answer": value}], ["line 1", "line 2"], "x")
        with pytest.raises(InputError, match="line 2"):
            read_verifier("number", records)


def test_a_reward_is_given_for_the_right_number_only():
    records = Records([{"answer": 1e-05}, {"answer": "6 * 7 = 42\n#### 42"}], ["line 1", "line 2"], "x")
    verify = read_verifier("number", records)
    assert [verify(text, 0) for text in ("It is -5", "0.00001", "1e-5", "#### 1/100000")] == [0.0, 1.0, 1.0, 1.0]
    assert [verify(text, 1) for text in ("#### 42\nin 3 steps", "42, or 43", r"\boxed{42.0} of 50")] == [1.0, 0.0, 1.0]


def test_long_texts_are_read_quickly():
    assert len(find_numbers("1,234 " * 20_000)) == 20_000
    assert len(find_numbers("1" * 4000 + " " + "1," * 4000)) > 1
