"""OpenAI's dialect: chat completions and the list of models. It stops at this folder."""
