"""A finished run's student -> a repository on the Hugging Face Hub, in one commit: all of it is there, or nothing.

What is checked before: the name, the token and what it may do, the license, and that nothing of someone else's is
replaced. The last commit of a repository names the run whose student it is; any other last commit, also one by which a
person has edited the card there, needs ``overwrite``.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from distil_ray import __version__
from distil_ray.config import Config
from distil_ray.errors import InputError, OutageError, RunError, first_of, reason_of
from distil_ray.models.origin import CARD_FILE, Origin, card_metadata, read_card, resolve
from distil_ray.outages import AT_START
from distil_ray.runs.console import Console
from distil_ray.runs.storage import EXPORT_FOLDER, FINISHED_FILE, IDENTITY_FILE, TEMPORARY, RunFolder
from distil_ray.training.history import History, read_history

Result = TypeVar("Result")

_ATTRIBUTES_FILE = ".gitattributes"  # the Hub's own, in every repository
_LICENSE_KEYS = ("license", "license_name", "license_link")
_TOKENS_PAGE = "https://huggingface.co/settings/tokens"


@dataclass(frozen=True)
class Publication:
    """Where a student is pushed to, and as what.

    Attributes:
        repo_id: ``owner/name``.
        license: the card's ``license``, ``license_name`` and ``license_link``; empty: as the run's card, or the
            teacher's, has it.
        is_private: of a repository that is made.
        revision: the branch; None: the main one.
        overwrite: whether what is not of this run may be replaced.
    """

    repo_id: str
    license: Mapping[str, str] = field(default_factory=dict)
    is_private: bool = False
    revision: str | None = None
    overwrite: bool = False

    @classmethod
    def of(cls, repo_id: str, *, license_: str | None, **others: Any) -> Self:
        """Take what a person has given; ``license_`` is an identifier, or ``NAME=URL``.

        Raises:
            InputError: the name cannot be one, or the license has no name or no URL.
        """
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise InputError(f"{repo_id!r} is no repository of the Hugging Face Hub: {reason_of(error)}") from error
        if "/" not in repo_id:
            raise InputError(
                f"given the repository {repo_id!r}, expected OWNER/NAME, with the name of a user or an organization"
            )
        return cls(repo_id, _license(license_), **others)

    def __str__(self) -> str:
        return self.repo_id + (f" at {self.revision}" if self.revision else "")


def _license(given: str | None) -> dict[str, str]:
    if given is None:
        return {}
    name, equals, link = given.partition("=")
    if not name or bool(equals) != bool(link) or (equals and "://" not in link):
        raise InputError(f"--license: given {given!r}, expected an identifier such as apache-2.0, or NAME=URL")
    if not equals and name == "other":
        raise InputError("--license: given 'other', expected the license's name and address: NAME=URL")
    return {"license": "other", "license_name": name, "license_link": link} if equals else {"license": name}


def check_before_training(publication: Publication, config: Config) -> None:
    """Make sure that a run's student can be pushed once there is one; the repository is made if there is none.

    Raises:
        InputError: it could not.
        OutageError: the Hub does not answer.
    """
    _check_token()
    folder = RunFolder(config.run.storage_path, config.run.name)
    license_ = publication.license
    if not license_:
        path, revision = config.student.path, None
        if config.teacher is not None:
            path, revision = config.teacher.path, config.teacher.revision
        license_ = _inherited_license(None if path is None else resolve(path, revision))
    _check_license(publication, license_)
    _open(publication, _digest(folder) if folder.exists(IDENTITY_FILE) else None)


def push_trained(config: Config, publication: Publication, console: Console) -> None:
    """Push the student of a run that has just been finished.

    Raises:
        RunError: that failed; says how to push by hand.
    """
    path = f"{config.run.storage_path}/{config.run.name}"
    try:
        push(path, publication, console)
    except (InputError, RunError) as error:
        raise RunError(
            f"the run is finished and its student is in {path}/{EXPORT_FOLDER}, but it could not be pushed: {error}\n"
            f"To push it: distil-ray push {path} {publication.repo_id}"
        ) from error


def push(path: str, publication: Publication, console: Console) -> None:
    """Push the student of the run in the folder ``path``.

    Raises:
        InputError: there is no finished run, the Hub does not take it from this user, or something else is there.
        OutageError: the Hub does not answer.
        RunError: the Hub failed in another way.
    """
    history = read_history(path)
    if not history.is_finished:
        raise InputError(
            f"{path}: the run is not finished, so there is no student to push; "
            "finish it with the command that began it, which resumes it"
        )
    _check_token()
    with history.folder.local_copy(EXPORT_FOLDER) as export:
        content = _content(export, history, publication)
        place = _open(publication, digest := _digest(history.folder))
        step = history.folder.read_json(FINISHED_FILE, "step")["step"]
        title = f"{history.name}: step {step:,}, distil_ray {__version__}"
        console.line(f"{len(content)} files for {publication}: sending what it does not hold yet")
        commit = _commit(publication, content, place, title, _MARK.format(digest))
    url = f"{_endpoint()}/{publication.repo_id}"
    if commit == place.head:
        console.line(f"{publication} holds this student already: nothing to push ({url})")
    else:
        console.line(f"pushed to {url} (commit {commit[:10]})")


# ---------------------------------------------------------------------------------------------------- what is pushed


def _content(export: Path, history: History, publication: Publication) -> dict[str, Path | bytes]:
    """The files of a repository, by path: those of the export, with the card as it is to be there."""
    from distil_ray.training.export import card_for_hub

    files: dict[str, Path | bytes] = {
        name.as_posix(): export / name
        for name in sorted(file.relative_to(export) for file in export.rglob("*") if file.is_file())
        if not any(part.startswith(".") for part in name.parts) and name.suffix != TEMPORARY
    }
    card = export / CARD_FILE
    if CARD_FILE not in files:
        raise InputError(f"{history.export_path} has no {CARD_FILE}, the model card; restore it from a copy")
    known = {key: value for key, value in read_card(card).items() if key in _LICENSE_KEYS}
    license_ = publication.license
    if not license_ and not known.get("license"):
        license_ = _inherited_license(_origin_of(history))
    _check_license(publication, license_ or known)
    try:
        text = card_for_hub(card.read_text(encoding="utf-8"), publication.repo_id, publication.revision, license_)
    except ValueError as error:
        raise InputError(f"{history.export_path}/{CARD_FILE} is no model card: {reason_of(error)}") from error
    return files | {CARD_FILE: text.encode()}


def _origin_of(history: History) -> Origin | None:
    pin = history.models.get("teacher") or history.models.get("student")
    return None if pin is None else pin.origin


def _inherited_license(origin: Origin | None) -> dict[str, Any]:
    """What the card of a student's teacher says, with as much as the student's own card may say of it."""
    from distil_ray.training.export import inherited

    if origin is None:
        return {}
    found = inherited(origin.path, card_metadata(origin))
    return {key: found[key] for key in _LICENSE_KEYS if key in found}


def _check_license(publication: Publication, license_: Mapping[str, Any]) -> None:
    """Raise InputError unless the license is known, and one for the Hub."""
    from huggingface_hub import ModelCard, ModelCardData

    if not license_.get("license"):
        raise InputError(
            "the license of the student is not known: its teacher's card does not say it; give it, as the teacher's "
            "license and the text allow it, by --license ID (such as apache-2.0), or NAME=URL for a license of its own"
        )
    if license_["license"] == "other" and not (license_.get("license_name") and license_.get("license_link")):
        raise InputError(
            "the license of the teacher is 'other', without a name and an address that hold for the student, too; "
            "give them by --license NAME=URL"
        )
    card = ModelCard(f"---\n{ModelCardData(**license_).to_yaml()}\n---\n")

    def attempt() -> None:
        try:
            card.validate()
        except ValueError as error:
            raise InputError(f"--license: the Hugging Face Hub does not take {license_}: {reason_of(error)}") from error

    _ask(publication, attempt)


# ---------------------------------------------------------------------------------------------------- where it goes


class _Place(NamedTuple):
    """A branch: its last commit, and the files that are not to stay beside others."""

    head: str
    files: list[str]


_MARK = "Run {}"
"""In the message of a commit: the run whose student it holds."""


def _digest(folder: RunFolder) -> str:
    """What a run is known by: the SHA-256 of its identity, which is written before its first step."""
    return hashlib.sha256(folder.read_bytes(IDENTITY_FILE)).hexdigest()


def _check_token() -> None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise InputError("HF_HUB_OFFLINE is set, and pushing needs the Hugging Face Hub; unset it")
    if get_token() is None:
        raise InputError(
            f"there is no Hugging Face token, and pushing needs one; make one that may write at {_TOKENS_PAGE}, and "
            "set HF_TOKEN, or run `hf auth login`"
        )


def _open(publication: Publication, digest: str | None) -> _Place:
    """Make the repository and the branch if they are not there; return what is there.

    Args:
        digest: of the run whose student may be there; None: there is none yet.

    Raises:
        InputError: the token may not write there, or what is there is not to be replaced.
    """
    from huggingface_hub import HfApi

    api, repo_id, revision = HfApi(), publication.repo_id, publication.revision
    _ask(publication, lambda: api.create_repo(repo_id, private=publication.is_private or None, exist_ok=True))
    _ask(publication, lambda: api.auth_check(repo_id, write=True))
    if publication.is_private and not _ask(publication, lambda: api.model_info(repo_id)).private:
        raise InputError(
            f"--private: {repo_id} is there already, and public; make it private in its settings, or omit --private"
        )
    is_new = revision is not None and revision not in _branches(publication)
    if is_new:
        _ask(publication, lambda: api.create_branch(repo_id, branch=str(revision), exist_ok=True))
    info = _ask(publication, lambda: api.model_info(repo_id, revision=revision))
    files = [one.rfilename for one in info.siblings or () if one.rfilename != _ATTRIBUTES_FILE]
    if files and not is_new and not publication.overwrite:
        _check_is_of_run(publication, digest, files)
    return _Place(str(info.sha), files)


def _branches(publication: Publication) -> list[str]:
    from huggingface_hub import HfApi

    return [one.name for one in _ask(publication, lambda: HfApi().list_repo_refs(publication.repo_id)).branches]


def _last_commit(publication: Publication) -> Any:
    from huggingface_hub import HfApi

    return HfApi().list_repo_commits(publication.repo_id, revision=publication.revision)[0]


def _check_is_of_run(publication: Publication, digest: str | None, files: list[str]) -> None:
    last = _ask(publication, lambda: _last_commit(publication))
    if digest is None or _MARK.format(digest) not in last.message:
        listed = ", ".join(first_of(sorted(files), 4, "files"))
        raise InputError(
            f"{publication} holds something else ({listed}): its last commit, {last.title!r}, is not of this run; give "
            "another name, or replace its files, which stay in its history, by distil-ray push --overwrite"
        )


def _commit(
    publication: Publication, content: Mapping[str, Path | bytes], place: _Place, title: str, message: str
) -> str:
    """Let the branch hold exactly these files; return its last commit, which is the same if it did already."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    operations: list[Any] = [
        *(CommitOperationAdd(name, file) for name, file in content.items()),
        *(CommitOperationDelete(name, is_folder=False) for name in place.files if name not in content),
    ]

    def attempt() -> str:
        try:
            commit = HfApi().create_commit(
                publication.repo_id,
                operations,
                commit_message=title,
                commit_description=message,
                revision=publication.revision,
                parent_commit=place.head,
            )
        except HfHubHTTPError as error:
            if _status(error) != 412:  # the branch has moved: by this very commit, perhaps, whose answer was lost
                raise
            last = _last_commit(publication)
            if (last.title, last.message.strip()) != (title, message):
                raise
            return str(last.commit_id)
        except RuntimeError as error:  # "Error while uploading FILE", which has a cause
            raise error.__cause__ or error from None
        return str(commit.oid)

    return _ask(publication, attempt)


# ---------------------------------------------------------------------------------------------------- when it fails


def _ask(publication: Publication, attempt: Callable[[], Result]) -> Result:
    """Return what ``attempt`` does, waiting for the Hub, without the lines of its library; or say why it cannot be."""
    from distil_ray.models.files import quiet

    try:
        with quiet():
            return AT_START.wait_out(f"the Hugging Face Hub ({publication.repo_id})", attempt)
    except (InputError, OutageError):
        raise
    except Exception as error:  # the library raises errors of many types, and those of its HTTP client
        status = _status(error)
        if status in (401, 403, 404):
            raise InputError(_denial(publication, status)) from error
        reason = reason_of(error)
        if status == 400 or isinstance(error, ValueError):
            raise InputError(f"the Hugging Face Hub does not take it for {publication}: {reason}") from error
        raise RunError(f"the Hugging Face Hub failed for {publication}: {reason}; nothing was committed") from error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error, or of what led to it."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return int(response.status_code)
        error = error.__cause__
    return None


def _denial(publication: Publication, status: int) -> str:
    from huggingface_hub import HfApi

    if status == 401:
        return f"the Hugging Face token is not valid (it may have expired); make another one at {_TOKENS_PAGE}"
    try:
        user = HfApi().whoami()
        owner = f" of {user['name']} ({user['auth']['accessToken']['role']})"
    except Exception:  # it is only for the message
        owner = ""
    return (
        f"the Hugging Face token{owner} may not write to {publication.repo_id}; make one that may at {_TOKENS_PAGE}, "
        "or name a repository of that user, or of an organization that lets the user write"
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
