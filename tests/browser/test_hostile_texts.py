"""Hostile names and texts in a report, a receipt and their figures: a browser shows them and executes nothing."""

import pytest
from markdown_it import MarkdownIt

import harness.api as harness
from harness.report.model_card import card_text
from harness.results.outcome import Outcome
from tests.browser.conftest import CLAIMS
from tests.invented_records import DATA_SCALING, changed, grid
from tests.report.test_model_card import FULL, PART, receipt

RAN = "window.ran=1"
PAYLOADS = [
    f"<script>{RAN}</script>",
    f"<ScRiPt >{RAN}</sCrIpT>",
    f"</script><script>{RAN}</script>",
    f"</style><script>{RAN}</script>",
    f"</title><script>{RAN}</script>",
    f"</textarea><script>{RAN}</script>",
    f"--><script>{RAN}</script>",
    f"]]><script>{RAN}</script>",
    f"<img src=x onerror={RAN}>",
    f'"><img src=x onerror={RAN}>',
    f"'><img src=x onerror={RAN}>",
    f"`><img src=x onerror={RAN}>",
    f"<img/src/onerror={RAN}>",
    f"<svg onload={RAN}>",
    f"<svg><script>{RAN}</script></svg>",
    f"<svg><animate onbegin={RAN} attributeName=x dur=1s>",
    f"</text></svg><script>{RAN}</script>",
    f"<body onload={RAN}>",
    f"<iframe srcdoc='<script>parent.{RAN}</script>'></iframe>",
    f"<iframe src=javascript:parent.{RAN}></iframe>",
    f"<object data=javascript:{RAN}></object>",
    f"<embed src=javascript:{RAN}>",
    f"<details open ontoggle={RAN}>x</details>",
    f"<input autofocus onfocus={RAN}>",
    f"<video><source onerror={RAN}></video>",
    f"<audio src=x onerror={RAN}>",
    f"<a href=javascript:{RAN} id=hostile>x</a>",
    f"[x](javascript:{RAN})",
    f"![x](x\"onerror=\"{RAN})",
    f"\\](x)<img src=x onerror={RAN}>",
    f"`</code><img src=x onerror={RAN}>",
    f"| x |\n\n<script>{RAN}</script>\n\n| y",
    f"\" onmouseover={RAN} autofocus onfocus={RAN} x=\"",
    f"' style='x' onanimationstart={RAN} '",
    f"{{{{ constructor.constructor('{RAN}')() }}}}",
    f"{{% raw %}}<script>{RAN}</script>{{% endraw %}}",
    f"<meta http-equiv=refresh content='0;url=javascript:{RAN}'>",
    f"<base href=javascript:{RAN}//>",
    f"<link rel=stylesheet href=x onerror={RAN}>",
    f"<form action=javascript:{RAN}><button autofocus onfocus={RAN}>x</button></form>",
    f"<marquee onstart={RAN}>x</marquee>",
    f"<math><mtext></mtext><script>{RAN}</script></math>",
    f"<noscript><p title=\"</noscript><img src=x onerror={RAN}>\">",
    f"&lt;script&gt;{RAN}&lt;/script&gt;",
    f"\u202e<script>{RAN}</script>\x07",
    f"$\\href{{javascript:{RAN}}}{{x}}$ $\\input{{/etc/passwd}}$",
]  # fmt: skip


def one(number):
    return PAYLOADS[number % len(PAYLOADS)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files for a browser: the report, with and without its content security policy, its figures, Markdown rendered."""
    root = tmp_path_factory.mktemp("hostile")
    records, load_items = grid(DATA_SCALING, seeds=2, worlds=(0,))
    student, corpus, budget = "".join(PAYLOADS[:6]), "".join(PAYLOADS[6:12]), "".join(PAYLOADS[12:18])
    teachers = {"weak": one(8), "strong": "".join(PAYLOADS[18:24])}
    found = []
    for number, record in enumerate(records):
        more = {"warnings": [one(number)]} if number % 2 else {}
        if number in (3, 7, 11):
            more |= {
                "status": "failed",
                "reason": one(number),
                "failure_class": one(number + 1),
                "scores": [],
                "items": {},
            }
        if record.scores:
            (score,) = record.plain()["scores"]
            more = {"scores": [score, *({**score, "source": one(ord(letter))} for letter in "abcdef")]} | more
        names = {"student": student, "corpus": corpus, "budget": budget, "teacher": teachers.get(record.teacher)}
        found.append(changed(record, grid="hostile", artifact=None, **names, **more))
    claims = [{**claim, "name": one(20 + n), "says": one(30 + n)} for n, claim in enumerate(CLAIMS["claims"])]
    claims = [{**claim, "gain": {**claim["gain"], "teacher": teachers["weak"]}} for claim in claims]

    def load(*arguments):
        items = load_items(*arguments)
        return items.assign(source=items["source"].map(lambda letter: one(ord(letter))))

    Outcome("hostile", found, {**CLAIMS, "claims": claims}, load).export(root / "hostile")
    page, text = harness.report(str(root / "hostile"), out=root / "out")
    figures = sorted((root / "out" / "figures").rglob("*.svg"))
    assert len(figures) > 2
    (root / "open.html").write_text(page.read_text().replace("Content-Security-Policy", "nothing"))

    made = receipt(**FULL) | {"warnings": PAYLOADS, "missing": PAYLOADS}
    made |= {"student": PART | {"name": one(0), "license": one(8)}, "recipe": {"name": "kd", "note": one(9)}}
    made |= {"teacher": PART | {"name": one(13), "license": one(14), "distillation_allowed": "no", "quantise": None}}
    sources = [{"source": text, "rows": 1, "license": text, "flag": text} for text in PAYLOADS]
    made["data"] = FULL["data"] | {"corpus": one(15), "revision": one(16), "sources": sources, "data_set": None}
    made["licences"] = {"says": "unclear", "reasons": PAYLOADS}
    made["budget"] = {"label": one(17)}
    card = card_text(made)
    for name, markdown in (("report", text.read_text()), ("card", card)):
        # raw HTML passes through, as in many readers
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
        (root / f"{name}.html").write_text(f"<!doctype html><meta charset=utf-8>{html}")
    return {"page": page, "open": root / "open.html", "report": root / "report.html", "card": root / "card.html"} | {
        file.stem: file for file in figures
    }


def opened(browser, file):
    """What ran in a file, once it was opened, clicked and moved over."""
    browser.get(file.as_uri())
    browser.execute_script(
        """for (const one of document.querySelectorAll("*"))
             for (const kind of ["mouseover", "focus", "animationstart", "toggle"]) one.dispatchEvent(new Event(kind));
           for (const one of document.querySelectorAll("a[href^=javascript]")) one.click();"""
    )
    return browser.execute_script("return window.ran === undefined ? null : window.ran")


def test_what_is_tried_runs_where_it_is_not_escaped(browser, tmp_path):
    ran = 0
    for number, payload in enumerate(PAYLOADS):
        file = tmp_path / f"{number}.html"
        file.write_text(f"<!doctype html><meta charset=utf-8><title>{payload}</title><p>{payload}</p>")
        ran += opened(browser, file) == 1
    assert ran > 20  # the others need a reader of Markdown, of templates or of formulas


@pytest.mark.parametrize("name", ["page", "open", "report", "card", "crossover", "sources"])
def test_nothing_runs_and_the_texts_are_there(browser, pages, name):
    assert opened(browser, pages[name]) is None
    assert (
        browser.execute_script("return document.querySelectorAll('iframe, object, embed, video, marquee').length") == 0
    )
    scripts = browser.execute_script("return document.scripts ? document.scripts.length : 0")
    assert scripts == (1 if name in ("page", "open") else 0)
    handlers = """return [...document.querySelectorAll("*")].filter(
        (one) => [...one.attributes].some((a) => a.name.startsWith("on") || /javascript:/i.test(a.value))).length"""
    assert browser.execute_script(handlers) == 0
    if name not in ("crossover", "sources"):  # letters of a figure are paths
        assert "window.ran=1" in browser.execute_script("return document.documentElement.textContent")


def test_no_other_figure_runs_anything(browser, pages):
    for file in {file for file in pages.values() if file.suffix == ".svg"}:
        assert opened(browser, file) is None
