"""Inference on a server that speaks the OpenAI protocol: address, requests, probe, and the engine itself."""
