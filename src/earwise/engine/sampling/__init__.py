"""How the next tokens of completions are drawn: random numbers, draft tokens, pause tokens, measures of confidence."""
