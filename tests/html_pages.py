"""Pages of HTML in the tests: what stands in one, and what a real browser makes of it."""

import html.parser
import shutil
import subprocess
from collections import Counter

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NASTY = "</script><script>alert(1)</script> & \"{{ command }} {% endfor %}\" <!--<script> \u2028 'x' &lt;"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


class Elements(html.parser.HTMLParser):
    """Counts the elements of a page and keeps its text, its attributes and, apart, what stands in the data element."""

    def __init__(self, text):
        super().__init__()
        self.counts, self.data, self.text, self.attributes = Counter(), "", "", []
        self.in_data = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.counts[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.in_data = dict(attributes).get("id") == "data"

    def handle_data(self, data):
        if self.in_data:
            self.data += data
        else:
            self.text += data

    def handle_endtag(self, tag):
        self.in_data = False


def browse(path, fragment="", extra="", window="1366,768"):
    """Open a page in Chromium; return what it shows as HTML, and what its console said."""
    page = path
    if extra:
        page = path.with_name("extra.html")
        page.write_text(path.read_text(encoding="utf-8").replace("</body>", f"<script>{extra}</script></body>"))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--log-level=0",
         "--virtual-time-budget=3000", f"--window-size={window}", f"--user-data-dir={path.parent}/profile",
         "--dump-dom", page.as_uri() + fragment],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
