"""Inverted tasks of training: given a video and its true windows, the model writes the query, or a word of it.

Relevant windows: [[82, 150]]   Given the video ... find the query. Query:                  A red circle moves.
Query: A red <extra_id_2> moves.   Relevant windows: ...   Given ... find <extra_id_2> ...   circle
"""

from dataclasses import dataclass

BLANK = "<extra_id_2>"  # the first two sentinels end the parts of a prompt
CONTEXT = "Given the video and the subtitle and the relevant windows, find"


@dataclass(frozen=True)
class InvertedTask:
    """What a row asks for in place of windows.

    Fields:
      shown: what the prompt shows of the query: all but one word, with `BLANK` in its place; or nothing.
      answer: the word, or the query.
    """

    shown: str
    answer: str

    @property
    def shown_words(self) -> str:
        """What is shown, without the blank: the text that captions are compared with."""
        return " ".join(self.shown.replace(BLANK, " ").split())

    def format_text(self, windows: str) -> str:
        """Return the text part of the prompt, given the true windows as text."""
        windows_line = f"Relevant windows: {windows}\n"
        if not self.shown:
            return f"{windows_line}{CONTEXT} the query.\nQuery: "
        return f"Query: {self.shown}\n{windows_line}{CONTEXT} {BLANK} in the query.\n{BLANK}: "


def whole_query(query: str) -> InvertedTask:
    """Return the task to write the whole query."""
    return InvertedTask("", query)
