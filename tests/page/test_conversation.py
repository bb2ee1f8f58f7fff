"""Asking, streaming, stopping, asking again, changing a question, and finding it all later."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from fakes import FakeModel, answer
from page.models import PausingModel, grounded
from page.serving import Open, Serve


def test_drop_a_picture_and_ask_and_the_answer_is_there(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(scene)
    user.ask_and_wait("What is it?")
    assert user.said() == "A red square."
    (message,) = model.asked[0][0]
    assert message.content == "<image>\nWhat is it?"
    assert Image.open(io.BytesIO(message.images[0])).size == (200, 100)


def test_words_stand_there_as_they_come(serve: Serve, open_page: Open) -> None:
    model = PausingModel("One two", " three four")
    user = open_page(serve(model))
    user.ask("Count.")
    user.until("document.querySelector('.answer .said')?.textContent === 'One two'")
    assert user.page.locator(".running").count() == 1
    model.go_on()
    user.wait_for_answer()
    assert user.said() == "One two three four"


def test_boxes_are_drawn_while_the_answer_is_still_written(serve: Serve, open_page: Open, scene: Path) -> None:
    model = PausingModel("<|ref|>the red box<|/ref|><|det|>[[200, 200, 600, 700]]<|/det|> and <|ref|>mo", "re<|/ref|>.")
    user = open_page(serve(model))
    user.drop(scene)
    user.ask("Where?")
    user.page.wait_for_selector(".answer canvas")
    assert user.said() == "the red box and"  # a tag that is not complete is not shown
    user.wait_for_boxes()
    assert user.answer_pixel(0.4, 0.2)[3] == 255
    model.go_on()
    user.wait_for_answer()


def test_stop_keeps_what_was_said_and_lets_the_model_go(serve: Serve, open_page: Open) -> None:
    model = PausingModel("One two", " three")
    user = open_page(serve(model))
    user.ask("Count.")
    user.until("document.querySelector('.answer .said')?.textContent === 'One two'")
    user.button("Stop").click()
    user.wait_for_answer()
    assert user.said() == "One two"
    assert "stopped" in user.page.locator(".answer .note").inner_text()
    assert model.closed.wait(60)
    assert model.num_cancelled == 1
    assert user.page.locator("#send").is_visible()


def test_escape_stops_too_and_nothing_said_can_be_asked_again(serve: Serve, open_page: Open) -> None:
    model = PausingModel("", "late")
    user = open_page(serve(model))
    user.ask("Count.")
    user.page.wait_for_selector(".running")
    user.page.keyboard.press("Escape")
    user.page.wait_for_selector(".failed .error")
    assert user.page.locator(".lost").count() == 0  # nobody waits for a server that is there
    model.gate.set()
    user.button("Again").click()
    user.wait_for_answer()
    assert user.said() == "late"


def test_again_asks_the_same_and_replaces_the_answer(serve: Serve, open_page: Open, scene: Path) -> None:
    answers = iter(["First.", "Second.", "Third."])
    model = FakeModel(lambda messages, params: answer(next(answers)))
    user = open_page(serve(model))
    user.drop(scene)
    user.ask_and_wait("What is it?")
    user.button("Again").click()
    user.page.get_by_text("Second.", exact=True).wait_for()
    user.wait_for_answer()
    assert user.page.locator(".answer").count() == 1
    assert model.asked[0][0] == model.asked[1][0]


def test_only_the_last_answer_is_asked_for_again(serve: Serve, open_page: Open) -> None:
    """Else what followed would be gone."""
    user = open_page(serve(FakeModel()))
    user.ask_and_wait("What is it?")
    user.ask_and_wait("Sure?")
    assert [button.is_visible() for button in user.page.locator(".answer .retry").all()] == [False, True]


def test_a_later_question_comes_with_what_was_said(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(scene)
    user.ask_and_wait("What is it?")
    user.ask_and_wait("Sure?")
    told = [(message.role, message.content, len(message.images)) for message in model.asked[1][0]]
    assert told == [("user", "<image>\nWhat is it?", 1), ("assistant", "A red square.", 0), ("user", "Sure?", 0)]


def test_a_changed_question_replaces_what_followed_it(serve: Serve, open_page: Open, scene: Path) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.drop(scene)
    user.ask_and_wait("What is it?")
    user.ask_and_wait("Sure?")
    user.page.get_by_role("button", name="Edit").first.click()
    assert user.page.input_value("#question") == "What is it?"
    assert user.page.locator("#tray li").count() == 1
    user.page.get_by_text("You are changing an earlier question").wait_for()
    user.ask("What colour is it?")
    user.until("document.querySelectorAll('article').length === 2")
    user.wait_for_answer()
    (message,) = model.asked[-1][0]
    assert (message.content, len(message.images)) == ("<image>\nWhat colour is it?", 1)


def test_a_change_can_be_given_up(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.ask_and_wait("What is it?")
    user.button("Edit").click()
    user.page.locator("#edit-cancel").click()
    assert user.page.input_value("#question") == ""
    assert user.page.locator("article").count() == 2


def test_what_was_said_can_be_copied_without_tags(serve: Serve, open_page: Open, scene: Path) -> None:
    url = serve(FakeModel(grounded()))
    user = open_page(url)
    user.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    user.drop(scene)
    user.ask_and_wait("Where?")
    user.stop_the_clock()
    user.button("Copy").click()
    user.button("Copied").wait_for()
    assert user.page.evaluate("navigator.clipboard.readText()") == "There is the red box, the corners."


def test_copying_twice_says_copied_for_a_while_only(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.ask_and_wait("What is it?")
    user.stop_the_clock()
    user.button("Copy").click()
    user.button("Copied").click()
    assert user.page.locator("#spoken").inner_text() == "Copied"
    for _ in range(100):  # the second click may end behind the first one's second and a half, and begin its own
        user.page.clock.run_for(2000)
        if user.button("Copy").is_visible():
            break
    user.button("Copy").wait_for()


def test_times_and_cached_tokens_are_told(serve: Serve, open_page: Open) -> None:
    user = open_page(serve(FakeModel()))
    user.ask_and_wait("What is it?")
    told = user.page.locator(".answer .note").inner_text()
    assert told.startswith("10 tokens in, 4 out · 2 from the cache · first word after ")


def test_earlier_conversations_are_kept_and_can_be_deleted(serve: Serve, open_page: Open, scene: Path) -> None:
    user = open_page(serve(FakeModel(grounded())))
    user.drop(scene)
    user.ask_and_wait("<|grounding|>Where is it?")
    user.page.locator("#history-open").click()
    user.page.locator(".entry", has_text="Where is it?").wait_for()  # it is written a moment after the answer
    user.page.reload()
    assert user.page.locator("article").count() == 0
    user.page.locator("#history-open").click()
    user.page.locator(".entry", has_text="Where is it?").click()
    assert user.said() == "There is the red box, the corners."
    user.wait_for_boxes()
    assert user.answer_pixel(0.4, 0.2)[3] == 255
    user.ask_and_wait("And now?")  # it goes on
    user.button("Delete: Where is it?").click()
    user.page.get_by_text("Nothing yet.").wait_for()
    assert user.page.locator("article").count() == 0


def test_a_malformed_answer_is_text_and_nothing_is_drawn(serve: Serve, open_page: Open, scene: Path) -> None:
    """The server says so by giving no boxes with an answer that ended by itself."""
    text = "<|ref|>one<|/ref|><|det|>[[1, 2, 3, 400]]<|/det|> <|ref|>two<|/ref|>"
    user = open_page(serve(FakeModel(answer(text))))
    user.drop(scene)
    user.ask_and_wait("Where?")
    assert user.said() == "one two"
    assert user.page.locator(".answer button.object").count() == 0


def test_a_new_conversation_begins_anew(serve: Serve, open_page: Open) -> None:
    model = FakeModel()
    user = open_page(serve(model))
    user.ask_and_wait("What is it?")
    user.page.locator("#restart").click()
    assert user.page.locator("#welcome").is_visible()
    user.ask_and_wait("Hello?")
    assert [message.content for message in model.asked[1][0]] == ["Hello?"]
