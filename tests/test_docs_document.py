"""The parts of a document that programs write."""

import pytest

from docs.document import with_part
from utils.errors import UserError


def test_a_part_is_replaced_and_the_rest_stays():
    text = "one\n<!-- cost -->\nold\n\nold\n<!-- end of cost -->\n<!-- costs -->\nx\n<!-- end of costs -->\n"
    assert with_part(text, "cost", r"new \1") == text.replace("old\n\nold", r"new \1")
    with pytest.raises(UserError, match="<!-- price -->"):
        with_part(text, "price", "new")
