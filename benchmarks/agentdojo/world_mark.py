"""The words by which an injected text is known, for both interpreters."""

MARK = "INFORMATION FOR THE ASSISTANT"
