"""Draw `page.png`: a browser's view of `ahn chat --web` after a text and two questions.

`python docs/figures/page.py`; it needs `pip install 'ahn[web]' selenium`, Chromium and its driver.
The embedded model reads a module of Python's library in which a fact is hidden, and is asked for
it.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from selenium import webdriver

HERE = Path(__file__).parent
SOURCE = Path(statistics.__file__)  # which the model has never seen
SIZE = 40_000  # characters of it
FACT = '\nHARVEST_CODE = "stone"\n'
QUESTION = "HARVEST_CODE ="
PORT = 7862
COMMAND = (
    f"-m ahn chat --model embedded --memory Slots --plain --max-new-tokens 4 --web --port {PORT}"
)
SECONDS = 120
SCROLL = """
let text = '';
const spans = [...document.querySelectorAll('#text .kept span')];
const fact = spans.find(span => (text += span.textContent).includes('HARVEST'));
fact.scrollIntoView({block: 'center'});
"""


def document(folder: str) -> Path:
    """The module with the fact in its first third, far beyond the window from its end."""
    text, path = SOURCE.read_text(), Path(folder, SOURCE.name)
    text = text[: text.rindex("\n\n", 0, SIZE) + 2]
    place = text.index("\n\n", len(text) // 3)
    path.write_text(text[:place] + FACT + text[place:])
    return path


def browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("headless=new", "no-sandbox", "window-size=1400,890"):
        options.add_argument(f"--{word}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def wait(condition: Callable[[], object]) -> None:
    """Until a condition holds."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the page did not get there")
        time.sleep(0.2)


def draw(driver: webdriver.Chrome, path: Path) -> None:
    """Drop the document in, ask, and scroll to where the fact stands."""

    def find(selector: str) -> list:
        return driver.find_elements("css selector", selector)

    driver.get(f"http://127.0.0.1:{PORT}")
    wait(lambda: find("#document input[type=file]"))
    find("#document input[type=file]")[0].send_keys(str(path))
    wait(lambda: find("#text .slot"))
    find("#line textarea")[0].send_keys(QUESTION)
    find("#ask")[0].click()
    wait(lambda: find("#text")[0].text.count("HARVEST_CODE") == 2)
    driver.execute_script(SCROLL)
    driver.execute_script("window.scrollTo(0, 0)")
    time.sleep(1)
    driver.save_screenshot(str(HERE / "page.png"))


def main() -> None:
    command = [sys.executable, *COMMAND.split()]
    with (
        tempfile.TemporaryDirectory() as folder,
        browser() as driver,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server,
    ):
        assert server.stderr is not None
        wait(lambda: "http://" in server.stderr.readline())
        draw(driver, document(folder))
        server.terminate()


if __name__ == "__main__":
    main()
