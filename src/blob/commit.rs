//! Whether a block list that the service refuses had been committed by the try before, whose answer was lost.
//!
//! A commit uses its blocks up: the same request once more is InvalidBlockList, although the blob is there.
//! The blocks' names are random, so a blob that has the first of them is the one that was to be made.

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use object_store::client::{HttpRequest, HttpRequestBody, HttpResponse};
use url::Url;

/// 50,000 blocks of about 110 bytes are the most that a blob can have.
const LONGEST_LIST: usize = 16 << 20;
const VERSION: &str = "x-ms-version";

/// Whether the request commits a block list and the answer says that there are no such blocks.
pub fn is_refused(request: &HttpRequest, answer: &HttpResponse) -> bool {
    let query = request.uri().query().unwrap_or_default();
    let error_code = answer.headers().get("x-ms-error-code");
    *request.method() == Method::PUT
        && query.split('&').any(|pair| pair == "comp=blocklist")
        && answer.status() == StatusCode::BAD_REQUEST
        && error_code.is_some_and(|code| code == "InvalidBlockList")
}

/// The request for the blocks of the blob as it stands, and its URL.
pub fn question(request: &HttpRequest, url: &Url) -> (HttpRequest, Url) {
    let mut url = url.clone();
    url.set_query(Some("comp=blocklist&blocklisttype=committed"));
    let mut question = Request::new(HttpRequestBody::empty());
    // The rest of what the commit carries says how the blob is to be written.
    if let Some(version) = request.headers().get(VERSION) {
        question.headers_mut().insert(VERSION, version.clone());
    }
    (question, url)
}

/// Whether the blocks that the service names are those of the request; false where that cannot be told.
pub async fn is_done(request: &HttpRequest, answer: HttpResponse) -> bool {
    let Ok(list) = request.body().clone().collect().await else { return false };
    let list = list.to_bytes();
    let Some(first) = first_block(&list) else { return false };
    let Ok(blocks) = Limited::new(answer.into_body(), LONGEST_LIST).collect().await else { return false };
    names(&blocks.to_bytes(), first)
}

/// The first name in a block list, in base64 as it is sent.
fn first_block(list: &[u8]) -> Option<&str> {
    let (_, rest) = std::str::from_utf8(list).ok()?.split_once("<Uncommitted>")?;
    rest.split_once("</Uncommitted>").map(|(name, _)| name).filter(|name| !name.is_empty())
}

fn names(blocks: &[u8], name: &str) -> bool {
    std::str::from_utf8(blocks).is_ok_and(|blocks| blocks.contains(&format!("<Name>{name}</Name>")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blob_is_ours_if_it_has_our_first_block() {
        let list = b"<?xml version=\"1.0\"?>\n<BlockList>\n\t<Uncommitted>YTE=</Uncommitted>\n\t<Uncommitted>YTI=</Uncommitted>\n</BlockList>";
        let first = first_block(list).expect("a block");
        assert_eq!(first, "YTE=");
        let committed = |name| {
            format!(
                "<BlockList><CommittedBlocks><Block><Name>{name}</Name><Size>5</Size></Block></CommittedBlocks></BlockList>"
            )
        };
        assert!(names(committed("YTE=").as_bytes(), first));
        assert!(!names(committed("YTI=").as_bytes(), first));
        assert!(!names(b"<BlockList><CommittedBlocks /></BlockList>", first));
        assert_eq!(first_block(b"<BlockList></BlockList>"), None);
    }
}
