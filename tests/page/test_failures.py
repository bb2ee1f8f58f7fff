"""What goes wrong is said, loses nothing, and can be tried again; what is hostile stays text."""

from __future__ import annotations

from pathlib import Path

from fakes import FakeModel, answer
from page.models import grounded
from page.serving import Open, Serve, running
from vl2.core.errors import EngineError

HOSTILE = '<img src="x" onerror="alert(1)">'


def test_a_request_that_is_too_large_is_told_so(serve: Serve, open_page: Open, scene: Path) -> None:
    user = open_page(serve(FakeModel(), max_body_bytes=600))
    user.drop(scene)
    user.ask("What is it?")
    error = user.page.locator(".failed .error")
    error.wait_for()
    assert "600" in error.inner_text()
    assert user.page.locator(".question img").count() == 1  # nothing is lost
    user.take_complaints()


def test_when_the_server_is_gone_the_page_says_so_and_asks_again_when_it_is_back(open_page: Open) -> None:
    model = FakeModel()
    with running(model) as url:
        user = open_page(url)
        user.page.get_by_text("fake").wait_for()
    user.ask("What is it?")
    user.page.get_by_text("The server cannot be reached.").wait_for()
    with running(model, port=int(url.rsplit(":", 1)[1])):
        user.page.locator(".failed").get_by_text("The server is back.").wait_for()
        user.button("Again").click()
        user.wait_for_answer()
        assert user.said() == "A red square."
    user.take_complaints()


def test_an_answer_that_breaks_shows_what_came_and_why_it_ended(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel([*answer("One two")[:-1], EngineError("the engine was lost")])))
    user.ask("Count.")
    user.page.get_by_text("the engine was lost").wait_for()
    assert user.said() == "One two"


def test_a_broken_answer_is_not_told_to_the_model_later(serve: Serve, open_page: Open) -> None:
    scripts = iter([[EngineError("lost")], answer("Yes.")])
    model = FakeModel(lambda messages, params: next(scripts))
    user = open_page(serve(model))
    user.ask("First?")
    user.page.locator(".failed .error").wait_for()
    user.ask("Second?")
    user.wait_for_answer(2)
    assert [message.content for message in model.asked[1][0]] == ["Second?"]
    user.take_complaints()


def test_boxes_and_shown_code_are_about_the_pictures_that_were_sent(serve: Serve, open_page: Open, scene: Path) -> None:
    """Not about one of a question that was never answered."""
    scripts = iter([[EngineError("lost")], grounded()])
    user = open_page(serve(FakeModel(lambda messages, params: next(scripts))))
    user.drop(scene, names=["lost.png"])
    user.ask("First?")
    user.page.locator(".failed .error").wait_for()
    user.drop(scene, names=["kept.png"])
    user.ask("Second?")
    user.wait_for_answer(2)
    assert user.page.locator(".answer img").get_attribute("alt") == "kept.png"
    user.button("Request").click()
    code = user.page.locator("#request-code").inner_text()
    assert "kept.png" in code and "lost.png" not in code
    user.take_complaints()


def test_what_is_no_picture_is_refused_by_name(serve: Serve, open_page: Open, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_bytes(b"not a picture at all, but long enough to look at")
    user = open_page(serve(FakeModel()))
    user.page.set_input_files("#files", file)
    user.page.locator("#notice").wait_for()
    assert user.page.locator("#notice").inner_text().startswith("notes.png")
    assert user.page.locator("#tray li").count() == 0
    user.take_complaints()


def test_a_schema_that_is_no_json_is_refused_before_it_is_sent(serve: Serve, open_page: Open) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.button("JSON").click()
    user.page.fill("#schema", "{oops")
    user.page.locator("#send").click()
    user.page.get_by_text("The schema is no JSON").wait_for()
    assert model.asked == []


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_with_keys_on_the_page_asks_for_one(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel(), api_key=["right"]))
    user.page.locator("#key-dialog").wait_for()
    user.page.fill("#key", "wrong")
    user.page.keyboard.press("Enter")
    user.page.get_by_text("does not take this API key").wait_for()
    user.page.fill("#key", "right")
    user.page.keyboard.press("Enter")
    user.until("document.getElementById('model').textContent === 'fake'")
    user.ask_and_wait("What is it?")
    assert user.said() == "A red square."
    user.take_complaints()


def test_a_key_that_is_given_late_answers_the_question_that_waits(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel(), api_key=["right"]))
    user.page.locator("#key-close").click()
    user.ask("What is it?")
    user.page.fill("#key", "right")
    user.page.keyboard.press("Enter")
    user.until("document.querySelector('.answer .said')?.textContent === 'A red square.'")
    user.take_complaints()


def test_a_key_is_gone_with_its_tab(serve: Serve, open_page: Open) -> None:
    url = serve(FakeModel(), api_key=["right"])
    user = open_page(url)
    user.page.fill("#key", "right")
    user.page.keyboard.press("Enter")
    user.page.locator("#key-dialog").wait_for(state="hidden")
    other = user.context.new_page()
    other.goto(url)
    other.locator("#key-dialog").wait_for()
    assert "right" not in str(user.context.storage_state())
    user.take_complaints()


# ---- hostile text ---------------------------------------------------------------------------------------------------


def test_hostile_labels_names_and_questions_stay_text(serve: Serve, open_page: Open, scene: Path) -> None:
    """A dialog, a request to another place or a violated policy would be a complaint of the console."""
    user = open_page(serve(FakeModel(grounded({HOSTILE: ((200, 200, 600, 700),)}), name=HOSTILE)))
    user.drop(scene, names=[f"{HOSTILE}.png"])
    user.ask_and_wait(f"{HOSTILE} <script>alert(2)</script>")
    assert user.page.locator("img[src=x], article script").count() == 0
    assert HOSTILE in user.said()
    assert HOSTILE in user.page.locator(".question .said").inner_text()
    assert user.page.locator("#model").inner_text() == HOSTILE
    user.button("Request").click()
    user.page.keyboard.press("Escape")
    user.page.locator("#history-open").click()
    user.page.locator(".entry", has_text="onerror").wait_for()
    user.page.locator(".answer .frame").click(position={"x": 5, "y": 5})
    assert HOSTILE in user.page.locator("#viewer-heading").inner_text()


def test_the_policy_of_the_page_is_one_that_bites(serve: Serve, open_page: Open) -> None:
    """What the page itself must not do is not possible in it either."""
    user = open_page(serve(FakeModel()))
    refused = user.page.evaluate(
        """async () => {
          const tries = {
            html: () => { document.body.innerHTML = "<b>x</b>"; },
            elsewhere: () => fetch("http://127.0.0.1:1/"),
          };
          const refused = [];
          for (const [name, attempt] of Object.entries(tries)) {
            try { await attempt(); } catch { refused.push(name); }
          }
          return refused;
        }"""
    )
    assert refused == ["html", "elsewhere"]
    assert any("Content Security Policy" in text for text in user.take_complaints())
