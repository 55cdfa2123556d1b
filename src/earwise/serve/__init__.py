"""An OpenAI-compatible server on the local engine: what is asked, who is answered together, what is told."""
