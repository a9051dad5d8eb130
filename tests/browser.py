"""A headless browser, where the machine has one: Chromium or Chrome. ``make browser`` gets one on Debian."""

import json
import re
import shutil
import subprocess
from html import unescape

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
COMMAND = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--host-resolver-rules=MAP * ~NOTFOUND"),
)


def ask(path, script, *, width, dark=False):
    """What the JavaScript expression ``script`` is on a page once it is loaded, in a window of so many pixels."""
    probe = path.with_name("probe.html")
    answer = f"document.title = 'answer:' + JSON.stringify({script})"
    probe.write_text(
        f"{path.read_text('utf-8')}<script>addEventListener('load', () => {{ {answer} }})</script>", "utf-8"
    )
    scheme = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
    folder = f"--user-data-dir={path.with_name('browser')}"
    command = [COMMAND, *FLAGS, scheme, folder, f"--window-size={width},800", "--dump-dom", probe.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(unescape(re.search(r"<title>answer:(.*?)</title>", found.stdout)[1]))
