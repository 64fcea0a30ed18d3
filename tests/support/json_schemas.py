"""What the JSON of ``maildropctl`` has to look like (JSON Schema 2020-12). README.txt tells of the same fields."""

from maildrop.queue import State

TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$"}
COUNT = {"type": "integer", "minimum": 0}
LINE = {"type": "string", "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"}    # printable, and one line


def _or_null(schema):
    return {"anyOf": [schema, {"type": "null"}]}


def _object(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _list(items):
    return {"type": "array", "items": items}


_MAIL = {
    "name": {"type": "string"},
    "spool": {"type": "string", "pattern": "^/"},
    "state": {"enum": [state.value for state in State]},
    "queued": TIME,
    "age_seconds": COUNT,
    "size_bytes": COUNT,
    "sender": _or_null(LINE),
    "recipients": _list(LINE),
    "subject": LINE,
    "attempts": COUNT,
    "next_attempt": _or_null(TIME),
    "reply": LINE,
    "unsettled": {"type": "boolean"},
}
_PAIRS = _list({"type": "array", "prefixItems": [LINE, LINE], "minItems": 2, "maxItems": 2})
_OUTCOMES = _object(delivered=COUNT, deferred=COUNT, failed=COUNT)
_TROUBLE = _or_null(_object(at=TIME, text=LINE))

QUEUE = _list(_object(**_MAIL))
SHOW = _object(**_MAIL, envelope=_PAIRS, header=_PAIRS, body=_or_null({"type": "string"}))
SHAPE = _list(
    _object(
        domain=LINE,
        total=COUNT,
        ages=_object(**dict.fromkeys(("5", "10", "20", "40", "80", "160", "320", "640", "1280", "1280+"), COUNT)),
    )
)
STATUS = _object(
    running={"type": "boolean"},
    pid=_or_null(COUNT),
    since=_or_null(TIME),
    last_pass=_object(began=_or_null(TIME), ended=_or_null(TIME)),
    queue=_object(**{state.value: COUNT for state in State}),
    oldest=_or_null(_object(name={"type": "string"}, spool={"type": "string"}, age_seconds=COUNT)),
    outage=_TROUBLE,
    last_error=_TROUBLE,
    recipients=_object(last_hour=_OUTCOMES, last_day=_OUTCOMES, total=_OUTCOMES),
)
LOG_LINE = _object(
    text={"type": "string"},
    outcome={"enum": ["delivered", "deferred", "failed", "trouble", None]},
    recipients=_list(LINE),
    mail=_or_null(LINE),
    reply=_or_null(LINE),
)
LOG = _list(LOG_LINE)
