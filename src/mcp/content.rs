//! The blocks of content that MCP knows, as far as a script can make them: text, images, and files.

use std::borrow::Cow;

use base64::display::Base64Display;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};

use crate::api::files::Files;

/// The largest picture that is returned as an image, bytes. Language models take images of up to 5 MB in base64, and
/// clients limit the answer of a tool; a larger picture is returned as a file.
pub(super) const MAX_IMAGE_BYTES: usize = 1 << 20;

/// The beginnings of the image formats that language models read. The name of a file does not count, since a wrong media
/// type makes model providers refuse the whole conversation.
const IMAGES: [(&[u8], &str); 4] = [
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
];

/// The media types of files by the end of their name. Anything else is `text/plain` or `application/octet-stream`.
const TYPES: [(&str, &str); 8] = [
    (".csv", "text/csv"),
    (".html", "text/html"),
    (".json", "application/json"),
    (".md", "text/markdown"),
    (".pdf", "application/pdf"),
    (".svg", "image/svg+xml"),
    (".xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    (".zip", "application/zip"),
];

/// A block of content.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Content<'a> {
    Text {
        text: Cow<'a, str>,
    },
    Image {
        data: InBase64<'a>,
        #[serde(rename = "mimeType")]
        media_type: &'static str,
    },
    Resource {
        resource: Resource<'a>,
    },
}

/// A file.
#[derive(Debug, Serialize)]
pub(super) struct Resource<'a> {
    uri: String,
    #[serde(rename = "mimeType")]
    media_type: &'static str,
    #[serde(flatten)]
    content: FileContent<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FileContent<'a> {
    Text(&'a str),
    Blob(InBase64<'a>),
}

/// Bytes that become base64 while they are written.
#[derive(Debug)]
pub(super) struct InBase64<'a>(&'a [u8]);

impl Serialize for InBase64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &BASE64_STANDARD))
    }
}

/// A block of text.
pub(super) fn text<'a>(text: impl Into<Cow<'a, str>>) -> Content<'a> {
    Content::Text { text: text.into() }
}

/// The blocks for files: their names, the pictures, and the other files.
pub(super) fn of_files(files: &Files) -> Vec<Content<'_>> {
    if files.is_empty() {
        return vec![];
    }
    let (pictures, others) = by_kind(files);
    let names = pictures.iter().map(|(name, ..)| *name).chain(others.iter().map(|(name, _)| *name));
    let names = text(format!("Files: {}", names.collect::<Vec<_>>().join(", ")));
    let pictures = pictures
        .into_iter()
        .map(|(_, bytes, media_type)| Content::Image { data: InBase64(bytes), media_type });
    let others = others
        .into_iter()
        .map(|(name, bytes)| Content::Resource { resource: resource(name, bytes) });
    [names].into_iter().chain(pictures).chain(others).collect()
}

/// The pictures, each with its name and media type, and the other files.
type ByKind<'a> = (Vec<(&'a str, &'a [u8], &'static str)>, Vec<(&'a str, &'a [u8])>);

fn by_kind(files: &Files) -> ByKind<'_> {
    let (mut pictures, mut others) = (Vec::new(), Vec::new());
    for (name, bytes) in files.iter() {
        match image_type(bytes) {
            Some(media_type) if bytes.len() <= MAX_IMAGE_BYTES => {
                pictures.push((name, bytes, media_type));
            }
            _ => others.push((name, bytes)),
        }
    }
    (pictures, others)
}

fn image_type(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Some("image/webp");
    }
    IMAGES.into_iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, media_type)| media_type)
}

fn resource<'a>(name: &str, bytes: &'a [u8]) -> Resource<'a> {
    let content = match std::str::from_utf8(bytes) {
        Ok(text) => FileContent::Text(text),
        Err(_) => FileContent::Blob(InBase64(bytes)),
    };
    let known = TYPES.into_iter().find(|(end, _)| name.to_ascii_lowercase().ends_with(end));
    let media_type = image_type(bytes).or(known.map(|(_, media_type)| media_type));
    let media_type = media_type.unwrap_or(match content {
        FileContent::Text(_) => "text/plain",
        FileContent::Blob(_) => "application/octet-stream",
    });
    Resource { uri: uri(name), media_type, content }
}

/// A URI that names a file of an answer. Nothing can be fetched by it.
fn uri(name: &str) -> String {
    let mut uri = String::from("mainbox:///");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                uri.push(char::from(byte));
            }
            _ => uri += &format!("%{byte:02X}"),
        }
    }
    uri
}
