"""`executor serve`: a plan's ranks answer questions about videos over HTTP, as OpenAI's chat completions."""
