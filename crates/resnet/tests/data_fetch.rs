//! Downloads, from a server of our own that behaves and misbehaves.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use resnet::data::fetch::{Progress, RemoteFile, Source, fetch};
use sha2::{Digest, Sha256};

/// What a request gets: the whole answer.
type Answer = Box<dyn Fn(Option<u64>) -> Vec<u8> + Send>;

struct Server {
    url: String,
    /// First byte asked for, by request.
    requests: Arc<Mutex<Vec<Option<u64>>>>,
}

/// Serves one request after another with the next answer; then closes.
fn serve(answers: Vec<Answer>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(vec![]));
    let seen = requests.clone();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let start = read_range(&stream);
            seen.lock().unwrap().push(start);
            stream.write_all(&answer(start)).unwrap();
        }
    });
    Server { url, requests }
}

fn read_range(stream: &TcpStream) -> Option<u64> {
    let mut start = None;
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            start = range.strip_suffix('-').unwrap().parse().ok();
        }
    }
    start
}

fn content() -> Vec<u8> {
    (0..200_000u64).map(|i| ((i * i) >> 8) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}\r\n").as_bytes(), body].concat()
}

/// Answers as a server should; after `limit` bytes of body the connection breaks.
fn good(body: Vec<u8>, limit: usize) -> Answer {
    Box::new(move |start| {
        let total = body.len();
        let start = start.unwrap_or(0) as usize;
        let (status, range) = match start {
            0 => ("200 OK", String::new()),
            _ => ("206 Partial Content", format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1)),
        };
        let headers = format!("{range}Content-Length: {}\r\n", total - start);
        response(status, &headers, &body[start..total.min(start.saturating_add(limit))])
    })
}

fn get(server: &Server, cache: &Path, bytes: &[u8], contents: &[&str]) -> resnet::Result<std::path::PathBuf> {
    let sha256 = sha256(bytes);
    let file = RemoteFile { name: "set.bin", bytes: bytes.len() as u64, sha256: &sha256, contents };
    fetch(&Source { name: "set", base_url: &server.url, files: &[file] }, cache, &|_| {})
}

fn part(cache: &Path) -> std::path::PathBuf {
    cache.join("set/set.bin.part")
}

#[test]
fn a_file_is_downloaded_once_with_progress() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(vec![good(content(), usize::MAX)]);
    let seen = RefCell::new(vec![]);
    let sha256 = sha256(&content());
    let files = [RemoteFile { name: "set.bin", bytes: 200_000, sha256: &sha256, contents: &[] }];
    let source = Source { name: "set", base_url: &server.url, files: &files };
    let progress = |progress: Progress| {
        assert_eq!((progress.file, progress.total), ("set.bin", 200_000));
        seen.borrow_mut().push(progress.done);
    };
    let folder = fetch(&source, cache.path(), &progress).unwrap();
    assert_eq!(std::fs::read(folder.join("set.bin")).unwrap(), content());
    assert!(seen.borrow().is_sorted() && seen.borrow().last() == Some(&200_000));
    assert!(!part(cache.path()).exists());
    fetch(&source, cache.path(), &progress).unwrap();
    assert_eq!(*server.requests.lock().unwrap(), [None]);
}

#[test]
fn a_partial_download_is_continued() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("set")).unwrap();
    std::fs::write(part(cache.path()), &content()[..150_000]).unwrap();
    let server = serve(vec![good(content(), usize::MAX)]);
    let folder = get(&server, cache.path(), &content(), &[]).unwrap();
    assert_eq!(std::fs::read(folder.join("set.bin")).unwrap(), content());
    assert_eq!(*server.requests.lock().unwrap(), [Some(150_000)]);
}

#[test]
fn a_broken_connection_is_taken_up_again() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(vec![good(content(), 90_000), good(content(), 90_000), good(content(), 90_000)]);
    let folder = get(&server, cache.path(), &content(), &[]).unwrap();
    assert_eq!(std::fs::read(folder.join("set.bin")).unwrap(), content());
    assert_eq!(*server.requests.lock().unwrap(), [None, Some(90_000), Some(180_000)]);
}

#[test]
fn what_came_before_giving_up_is_kept() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(vec![good(content(), 90_000), good(content(), 0)]);
    let message = get(&server, cache.path(), &content(), &[]).unwrap_err().to_string();
    assert!(message.contains("set.bin"), "{message}");
    assert_eq!(std::fs::metadata(part(cache.path())).unwrap().len(), 90_000);
}

#[test]
fn a_server_that_cannot_continue_starts_again() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("set")).unwrap();
    std::fs::write(part(cache.path()), vec![1; 150_000]).unwrap();
    let all = Box::new(|_| response("200 OK", "Content-Length: 200000\r\n", &content()));
    let folder = get(&serve(vec![all]), cache.path(), &content(), &[]).unwrap();
    assert_eq!(std::fs::read(folder.join("set.bin")).unwrap(), content());
}

#[test]
fn another_part_than_asked_for_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(cache.path().join("set")).unwrap();
    std::fs::write(part(cache.path()), &content()[..150_000]).unwrap();
    let other = Box::new(|_| response("206 Partial Content", "Content-Range: bytes 0-49999/200000\r\n", &content()));
    let message = get(&serve(vec![other]), cache.path(), &content(), &[]).unwrap_err().to_string();
    assert!(message.contains("expected Content-Range \"bytes 150000-199999/200000\""), "{message}");
    assert_eq!(std::fs::metadata(part(cache.path())).unwrap().len(), 150_000);
}

#[test]
fn a_wrong_checksum_is_refused_and_nothing_is_left() {
    let cache = tempfile::tempdir().unwrap();
    let mut wrong = content();
    wrong[77_777] ^= 1;
    let server = serve(vec![good(wrong, usize::MAX), good(content(), usize::MAX)]);
    let message = get(&server, cache.path(), &content(), &[]).unwrap_err().to_string();
    assert!(message.contains(&format!("expected SHA-256 {}, found", sha256(&content()))), "{message}");
    assert!(!part(cache.path()).exists() && !cache.path().join("set/set.bin").exists());
    get(&server, cache.path(), &content(), &[]).unwrap();
}

#[test]
fn a_wrong_size_or_status_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let page = Box::new(|_| response("200 OK", "Content-Length: 5\r\n", b"hello"));
    let absent = Box::new(|_| response("404 Not Found", "Content-Length: 0\r\n", b""));
    let server = serve(vec![page, absent]);
    let message = || get(&server, cache.path(), &content(), &[]).unwrap_err().to_string();
    assert!(message().contains("set.bin: expected 200000 bytes, found 5"));
    assert!(message().contains("set.bin: the server answers 404 Not Found"));
}

/// An archive with a file that must not be written where it says, and one that is not asked for.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, bytes) in [("../../evil", &b"evil"[..]), ("folder/a.bin", b"aaa"), ("folder/b.bin", b"bb"), ("c", b"c")]
    {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append(&header, bytes).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn only_the_wanted_files_of_an_archive_are_unpacked() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(vec![good(archive(), usize::MAX)]);
    let folder = get(&server, cache.path(), &archive(), &["b.bin", "a.bin"]).unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, [".lock", "a.bin", "b.bin"]);
    assert_eq!(std::fs::read(folder.join("a.bin")).unwrap(), b"aaa");
    get(&server, cache.path(), &archive(), &["b.bin", "a.bin"]).unwrap();
    assert_eq!(server.requests.lock().unwrap().len(), 1);
}

#[test]
fn an_archive_without_a_wanted_file_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let server = serve(vec![good(archive(), usize::MAX)]);
    let message = get(&server, cache.path(), &archive(), &["a.bin", "d.bin"]).unwrap_err().to_string();
    assert!(message.contains("expected it to hold d.bin"), "{message}");
}
