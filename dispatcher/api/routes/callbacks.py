"""Answers for jobs whose work is done elsewhere, by the token that the job gave out."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dispatcher.api.context import CallbackToken, TheApi, answer, respond
from dispatcher.api.requests import AnswerRequest
from dispatcher.api.routes.docs import good, problems
from dispatcher.api.routes.seeing import JobId
from dispatcher.api.views import StateView
from dispatcher.errors import InvalidPayload
from dispatcher.outcome import encode
from dispatcher.queries.jobs import answer_job

router = APIRouter(tags=["jobs"])


@router.post(
    "/jobs/{id}/callback",
    response_model=StateView,
    summary="Answer for a job",
    responses={200: good("The answer counts."), **problems(400, 404, 409, 413)},
)
async def answer_for_job(api: TheApi, token: CallbackToken, id: JobId, given: AnswerRequest) -> Response:
    """The bearer token is the job's own: what its request brought in the header Dispatcher-Callback-Token.

    The first answer counts, and the same one again is no error, so it may be sent until it is heard. 404 also stands
    for a wrong token, 409 for a job that has ended or was answered otherwise.
    """
    said = given.model_dump(
        include={"status", "result"} if given.status == "succeeded" else {"status", "message", "retry"}
    )
    if given.status == "failed" and given.message is None:
        said["message"] = "no reason given"
    try:
        text = encode(said)
    except (TypeError, ValueError) as exc:
        raise InvalidPayload(f"the answer cannot be stored: {exc}") from exc
    state = await api.db.run(answer_job(id, token, text))
    api.hub.look(id)
    return respond(answer(200, {"id": id, "state": state}))
