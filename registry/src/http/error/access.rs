//! What a caller is told who may not, or who is not who was said.

use std::time::Duration;

use coral_schema::oci::ErrorCode;
use http::StatusCode;

use super::{ErrorAnswer, RequestKind, unavailable, unknown};
use crate::access::AccessError;
use crate::name::NameError;

pub(super) fn access(error: &AccessError, kind: RequestKind, mirror: bool) -> ErrorAnswer {
    let denied = |message| ErrorAnswer::new(StatusCode::FORBIDDEN, ErrorCode::Denied, message);
    let unauthorized =
        |message| ErrorAnswer::new(StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized, message);
    match error {
        AccessError::Name(error) => name(error),
        AccessError::Denied(_) => denied(
            "the configuration of this cache does not allow this repository (allow, deny); ask its administrator, or \
             pull from the upstream registry",
        ),
        AccessError::Hidden(_) => unknown(kind),
        // A runtime that walks a list of mirrors would answer a challenge with the login for the upstream.
        AccessError::LoginNeeded(Some((repo, _))) if mirror && !repo.is_hosted() => unknown(kind),
        AccessError::Proxied(_) => ErrorAnswer::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::Unsupported,
            "this repository is pulled through from its upstream and takes no changes here; push to the upstream \
             registry, or to a name below a hosted prefix",
        ),
        AccessError::PushDenied(_) => denied(
            "you may not change this repository: no rule under access allows it, and anonymousPush is false; ask the \
             administrator of this registry",
        ),
        AccessError::LoginNeeded(_) => unauthorized(
            "this needs a login, whether it exists or not; log in with a user of this registry, or send a token",
        ),
        AccessError::Scope { .. } => unauthorized(
            "the token was made for something else; ask for one with the scope of the challenge",
        ),
        AccessError::WrongLogin => unauthorized(
            "the user or the password is wrong, or the scheme is none of Basic and Bearer; log in again, or log out to \
             read what is public",
        ),
        AccessError::WrongToken => unauthorized(
            "the token is unknown or not good any more; get a new one, or send none to read what is public",
        ),
        AccessError::Busy => unavailable("too many logins are being checked", SOON),
        AccessError::Unavailable {
            repo: _,
            reason,
            retry_after,
        } => unavailable(reason, *retry_after),
    }
}

fn name(error: &NameError) -> ErrorAnswer {
    let (status, code) = match error {
        NameError::UnknownUpstream(_) | NameError::NoUpstream | NameError::NotHosted(_) => {
            (StatusCode::NOT_FOUND, ErrorCode::NameUnknown)
        }
        NameError::Malformed(_) => (StatusCode::BAD_REQUEST, ErrorCode::NameInvalid),
    };
    ErrorAnswer::new(status, code, error)
}

/// Some checks are over by then.
const SOON: Duration = Duration::from_secs(2);
