"""The OpenAPI document of the server, for clients and tools that read one. Pure.

Written by hand, since the routes parse bodies themselves, with limits; `ChatParams` gives the fields of a chat
completion.
"""

from typing import Any

from earwise.serve.chat_request import MAX_PARTS, MAX_STOP_CHARS, MAX_STOPS, ROLES, ChatParams
from earwise.serve.http.limits import ServerLimits

Schema = dict[str, Any]
_ERROR_DESCRIPTIONS = {
    400: "Something is wrong with the request.",
    401: "The API key is missing or wrong.",
    403: "Another host or site, or an option of the server that was not given.",
    404: "No such model or route.",
    408: "The request took too long to arrive.",
    413: "The body is too large.",
    415: "The content type is another.",
    429: "The queue is full.",
    503: "The server is stopping, or receives too many bodies at once.",
    504: "The answer took too long.",
}


def openapi_document(limits: ServerLimits) -> Schema:
    """The document, in OpenAPI 3.1.

    Args:
        limits: What a request may ask for.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": "earwise", "version": "1", "description": "Chat completions with audio, as OpenAI's API."},
        "paths": _paths(),
        "components": {
            "schemas": {
                "ChatRequest": _chat_request(limits), "Message": _message(), "Part": _part(),
                "ChatCompletion": _chat_completion(), "Error": _error(),
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }  # fmt: skip


def _paths() -> Schema:
    model_list = _object({"object": {"const": "list"}, "data": {"type": "array", "items": {"type": "object"}}})
    health = _object({"status": {"const": "ok"}, "model": {"type": "string"}, "revision": {"type": "string"}})
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    chat = _operation("A chat completion, whole or as a stream.", _reference("ChatCompletion"))
    chat["requestBody"] = _json_body(_reference("ChatRequest"))
    chat["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    weights = _operation("Replace the weights.", {"type": "string"}, "text/plain")
    weights["requestBody"] = _json_body(_object({"lora_name": {"type": "string"}, "lora_path": {"type": "string"}}))
    transcription = _operation("The text of speech.", _object({"text": {"type": "string"}}))
    transcription["responses"]["200"]["content"]["text/plain"] = {"schema": {"type": "string"}}
    fields = {
        "file": {"type": "string", "format": "binary"}, "model": {"type": "string"}, "language": {"type": "string"},
        "response_format": {"enum": ["json", "text"]},
    }  # fmt: skip
    form = _object(fields, required=("file",))
    transcription["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    return {
        "/health": {"get": _operation("Whether the server is alive.", health, secured=False)},
        "/openapi.json": {"get": _operation("This document.", {"type": "object"}, secured=False)},
        "/metrics": {"get": _operation("Counters in Prometheus' format.", {"type": "string"}, "text/plain")},
        "/v1/models": {"get": _operation("The served model.", model_list)},
        "/v1/models/{name}": {
            "get": _operation("The served model.", _object({"id": {"type": "string"}})) | {"parameters": [name]}
        },
        "/v1/chat/completions": {"post": chat},
        "/v1/load_lora_adapter": {"post": weights},
        "/v1/audio/transcriptions": {"post": transcription},
    }


def _operation(summary: str, schema: Schema, media_type: str = "application/json", *, secured: bool = True) -> Schema:
    """An operation with its successful response and the errors that any route may return."""
    responses: Schema = {"200": {"description": summary, "content": {media_type: {"schema": schema}}}}
    for status, description in _ERROR_DESCRIPTIONS.items():
        content = {"application/json": {"schema": _reference("Error")}}
        responses[str(status)] = {"description": description, "content": content}
    return {"summary": summary, "responses": responses} | ({"security": [{}, {"bearer": []}]} if secured else {})


def _chat_request(limits: ServerLimits) -> Schema:
    params = ChatParams.model_json_schema()
    properties = params["properties"] | {
        "messages": {
            "type": "array", "items": _reference("Message"), "minItems": 1, "maxItems": limits.max_messages,
        },
        "stop": {
            "anyOf": [
                {"type": "string", "maxLength": MAX_STOP_CHARS},
                {"type": "array", "items": {"type": "string", "maxLength": MAX_STOP_CHARS}, "maxItems": MAX_STOPS},
            ]
        },
        "stream_options": {
            "type": "object", "properties": {"include_usage": {"type": "boolean"}}, "additionalProperties": False,
        },
    }  # fmt: skip
    for name in ("max_tokens", "max_completion_tokens"):
        properties[name] = {"type": ["integer", "null"], "minimum": 1, "maximum": limits.max_tokens}
    return {"type": "object", "properties": properties, "required": ["messages"], "additionalProperties": False}


def _message() -> Schema:
    parts = {"type": "array", "items": _reference("Part"), "minItems": 1, "maxItems": MAX_PARTS}
    content = {"anyOf": [{"type": "string"}, parts, {"type": "null"}]}
    return _object({"role": {"enum": list(ROLES)}, "content": content}, required=("role",))


def _part() -> Schema:
    text = _object({"type": {"const": "text"}, "text": {"type": "string"}})
    audio = _object({"data": {"type": "string", "description": "base64"}, "format": {"type": "string"}}, ("data",))
    input_audio = _object({"type": {"const": "input_audio"}, "input_audio": audio})
    audio_url = _object({"type": {"const": "audio_url"}, "audio_url": _object({"url": {"type": "string"}})})
    return {"oneOf": [text, input_audio, audio_url]}


def _chat_completion() -> Schema:
    choice = _object({"index": {"type": "integer"}, "message": {"type": "object"}, "finish_reason": {"type": "string"}})
    return _object(
        {
            "id": {"type": "string"},
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": choice},
            "usage": {"type": "object"},
        }
    )


def _error() -> Schema:
    optional = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": optional, "code": optional}
    return _object({"error": _object(fields)})


def _object(properties: Schema, required: tuple[str, ...] | None = None) -> Schema:
    """An object whose fields are all required, unless `required` says which."""
    return {"type": "object", "properties": properties, "required": list(properties if required is None else required)}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json_body(schema: Schema) -> Schema:
    return {"required": True, "content": {"application/json": {"schema": schema}}}
