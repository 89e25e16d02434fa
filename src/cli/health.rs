//! `mainbox health`: asks the service on this host for its health.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use super::error::CommandError;
use super::output::print;
use crate::config::Config;

/// How long the service may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The largest response that is read, bytes.
const MAX_RESPONSE_BYTES: u64 = 4096;

/// Prints the health of the service that `config` describes. Returns whether it is healthy.
///
/// # Errors
/// When the service does not answer in time.
pub(super) fn health(config: &Config) -> Result<bool, CommandError> {
    let failed = |source| CommandError::Health { port: config.port, source };
    // A service that listens on all addresses is reached over IPv4, which every host has.
    let host = config.host.filter(|host| !host.is_unspecified());
    let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut stream = TcpStream::connect((host, config.port)).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .map_err(failed)?;
    let mut response = String::new();
    stream.take(MAX_RESPONSE_BYTES).read_to_string(&mut response).map_err(failed)?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    print(&format!("{body}\n"))?;
    Ok(head.starts_with("HTTP/1.1 200 "))
}
