"""Take the picture of the page for the README from a running page, as a visitor sees it.

python tests/screenshot.py http://127.0.0.1:7860 assets/examples/cat.jpg "Describe this picture." docs/screenshot.png
"""

from __future__ import annotations

import argparse
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("picture", type=Path)
    parser.add_argument("question", help="a task's label in brackets may stand in front: [Find] the cat")
    parser.add_argument("out", type=Path)
    parser.add_argument("--region", help="x0,y0,x1,y1 in the unit square: drawn before asking")
    parser.add_argument("--next", action="append", default=[], help="another question, asked afterwards")
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--size", default="1360x860")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(
            viewport={"width": width, "height": height}, color_scheme="dark" if asked.dark else "light"
        )
        page.goto(asked.address)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Choose a file").click()
        chooser.value.set_files(str(asked.picture))
        page.wait_for_function("() => (document.querySelector('.mm-picture') || {}).naturalWidth > 0")
        if asked.region:
            box = page.locator(".mm-stage").bounding_box()
            x0, y0, x1, y1 = map(float, asked.region.split(","))
            page.mouse.move(box["x"] + x0 * box["width"], box["y"] + y0 * box["height"])
            page.mouse.down()
            page.mouse.move(box["x"] + x1 * box["width"], box["y"] + y1 * box["height"], steps=4)
            page.mouse.up()
        for number, question in enumerate([asked.question, *asked.next]):
            task, _, words = question.rpartition("] ") if question.startswith("[") else ("", "", question)
            if task:
                page.locator("#mm-tasks label", has_text=task[1:]).click()
            page.fill("#mm-question textarea", words)
            page.press("#mm-question textarea", "Enter")
            page.wait_for_function(
                "(n) => document.querySelectorAll('.mm-model[data-state=done]').length > n", arg=number, timeout=120_000
            )
        page.wait_for_timeout(500)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        # In 256 colours a third of the size, which every clone of the repository pays.
        with Image.open(BytesIO(page.screenshot())) as shown:
            shown.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(asked.out, optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
