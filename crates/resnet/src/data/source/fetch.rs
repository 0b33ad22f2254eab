//! Downloads the public data sets, once, into the user's cache.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use crate::files::write_atomically;
use crate::{Error, Result};

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Name of the file.
    pub file: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// A data set to download.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Name of the data set, and of its folder in the cache.
    pub name: &'a str,
    /// Address of the folder the files are in, with a `/` at the end.
    pub base_url: &'a str,
    /// Files to download.
    pub files: &'a [RemoteFile<'a>],
}

/// A file to download.
#[derive(Clone, Copy, Debug)]
pub struct RemoteFile<'a> {
    /// Name, below the base address and in the cache.
    pub name: &'a str,
    /// Size.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: &'a str,
    /// The files that are needed from it, if it is a `.tar.gz` archive; empty if it is itself needed.
    pub contents: &'a [&'a str],
}

/// The binary archives on the author's page, the files of the Fashion-MNIST repository.
pub(super) const SOURCES: [Source<'static>; 3] = [
    Source {
        name: "cifar10",
        base_url: "https://www.cs.toronto.edu/~kriz/",
        files: &[RemoteFile {
            name: "cifar-10-binary.tar.gz",
            bytes: 170_052_171,
            sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            contents: &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
                "test_batch.bin",
            ],
        }],
    },
    Source {
        name: "cifar100",
        base_url: "https://www.cs.toronto.edu/~kriz/",
        files: &[RemoteFile {
            name: "cifar-100-binary.tar.gz",
            bytes: 168_513_733,
            sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            contents: &["train.bin", "test.bin", "fine_label_names.txt"],
        }],
    },
    Source {
        name: "fashion-mnist",
        base_url: "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        files: &[
            RemoteFile {
                name: "train-images-idx3-ubyte.gz",
                bytes: 26_421_880,
                sha256: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                contents: &[],
            },
            RemoteFile {
                name: "train-labels-idx1-ubyte.gz",
                bytes: 29_515,
                sha256: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                contents: &[],
            },
            RemoteFile {
                name: "t10k-images-idx3-ubyte.gz",
                bytes: 4_422_102,
                sha256: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                contents: &[],
            },
            RemoteFile {
                name: "t10k-labels-idx1-ubyte.gz",
                bytes: 5_148,
                sha256: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                contents: &[],
            },
        ],
    },
];

/// The folder that downloads are kept in: `RESNET_CACHE`, or `resnet` in the user's cache folder.
///
/// # Errors
/// When there is no home folder.
pub fn cache_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("RESNET_CACHE").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    let user = etcetera::choose_base_strategy()
        .map_err(|_| Error::Config("there is no home folder to keep downloads in: set RESNET_CACHE".into()))?;
    Ok(user.cache_dir().join("resnet"))
}

/// Gets a data set: the folder in `cache` that its files are in, downloaded if they are not there yet.
/// What an interrupted download got is kept and continued.
///
/// # Errors
/// When a file cannot be downloaded or written, or is not the one that was expected.
pub fn fetch(source: &Source, cache: &Path, progress: &dyn Fn(Progress)) -> Result<PathBuf> {
    let folder = cache.join(source.name);
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    // Two runs that start together must not write to the same partial file.
    let lock = folder.join(".lock");
    let lock_file = File::create(&lock).map_err(Error::io(&lock))?;
    lock_file.lock().map_err(Error::io(&lock))?;
    for file in source.files {
        let download = Download { url: format!("{}{}", source.base_url, file.name), file, folder: &folder, progress };
        download.ensure()?;
    }
    Ok(folder)
}

struct Download<'a> {
    url: String,
    file: &'a RemoteFile<'a>,
    folder: &'a Path,
    progress: &'a dyn Fn(Progress),
}

impl Download<'_> {
    fn ensure(&self) -> Result<()> {
        let archive = self.folder.join(self.file.name);
        let wanted: &[&str] = if self.file.contents.is_empty() { &[self.file.name] } else { self.file.contents };
        // Files get these names only when they are whole.
        if wanted.iter().all(|name| self.folder.join(name).is_file()) {
            return Ok(());
        }
        if !archive.is_file() {
            let partial = self.folder.join(format!("{}.part", self.file.name));
            self.download(&partial)?;
            self.verify(&partial)?;
            std::fs::rename(&partial, &archive).map_err(Error::io(&archive))?;
        }
        if !self.file.contents.is_empty() {
            self.unpack(&archive)?;
            std::fs::remove_file(&archive).map_err(Error::io(&archive))?;
        }
        Ok(())
    }

    /// Asks again as long as every answer brings the file further.
    fn download(&self, partial: &Path) -> Result<()> {
        let mut file =
            File::options().read(true).append(true).create(true).open(partial).map_err(Error::io(partial))?;
        let mut done = file.metadata().map_err(Error::io(partial))?.len();
        while done < self.file.bytes {
            let outcome = self.request(&mut file, done, partial);
            let before = std::mem::replace(&mut done, file.metadata().map_err(Error::io(partial))?.len());
            match outcome {
                Err(error) if done <= before => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// One request for what is missing after the first `done` bytes, written to `file`.
    fn request(&self, file: &mut File, done: u64, partial: &Path) -> Result<()> {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .https_only(self.url.starts_with("https:"))
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .into();
        let failed = |error: ureq::Error| self.failure(error.to_string());
        let mut request = agent.get(&self.url);
        if done > 0 {
            request = request.header("Range", format!("bytes={done}-"));
        }
        let mut response = request.call().map_err(failed)?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        match response.status() {
            StatusCode::OK => {
                // The server sends all of it, asked or not.
                file.set_len(0).map_err(Error::io(partial))?;
                if let Some(found) = header("Content-Length").and_then(|length| length.parse::<u64>().ok())
                    && found != self.file.bytes
                {
                    return Err(self.failure(format!("expected {} bytes, found {found}", self.file.bytes)));
                }
                self.receive(response.body_mut().as_reader(), file, 0, partial)
            }
            StatusCode::PARTIAL_CONTENT => {
                let expected = format!("bytes {done}-{}/{}", self.file.bytes - 1, self.file.bytes);
                let found = header("Content-Range").unwrap_or("none");
                if found != expected {
                    return Err(self.failure(format!("expected Content-Range {expected:?}, found {found:?}")));
                }
                self.receive(response.body_mut().as_reader(), file, done, partial)
            }
            status => Err(self.failure(format!("the server answers {status}"))),
        }
    }

    fn receive(&self, body: impl Read, file: &mut File, mut done: u64, partial: &Path) -> Result<()> {
        let total = self.file.bytes;
        let mut body = body.take(total - done);
        let mut buffer = vec![0; 1 << 16];
        while done < total {
            (self.progress)(Progress { file: self.file.name, done, total });
            let n = body.read(&mut buffer).map_err(|error| self.failure(error.to_string()))?;
            if n == 0 {
                return Err(self.failure(format!("expected {total} bytes, found {done}")));
            }
            file.write_all(&buffer[..n]).map_err(Error::io(partial))?;
            done += n as u64;
        }
        (self.progress)(Progress { file: self.file.name, done, total });
        file.sync_all().map_err(Error::io(partial))
    }

    /// Checks the whole file; a wrong one is removed, as nothing could continue it.
    fn verify(&self, partial: &Path) -> Result<()> {
        let mut file = File::open(partial).map_err(Error::io(partial))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        file.seek(SeekFrom::Start(0)).map_err(Error::io(partial))?;
        loop {
            match file.read(&mut buffer).map_err(Error::io(partial))? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != self.file.sha256 {
            std::fs::remove_file(partial).map_err(Error::io(partial))?;
            return Err(self.failure(format!("expected SHA-256 {}, found {found}", self.file.sha256)));
        }
        Ok(())
    }

    /// Writes the wanted files of an archive into the folder, whatever folder they are in there; all
    /// else in it is passed over.
    fn unpack(&self, archive: &Path) -> Result<()> {
        let file = File::open(archive).map_err(Error::io(archive))?;
        let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(std::io::BufReader::new(file)));
        let mut missing = self.file.contents.to_vec();
        for entry in tar.entries().map_err(Error::io(archive))? {
            let mut entry = entry.map_err(Error::io(archive))?;
            let path = entry.path().map_err(Error::io(archive))?;
            let wanted = missing.iter().position(|&name| path.file_name().is_some_and(|found| found == name));
            if let Some(wanted) = wanted
                && entry.header().entry_type().is_file()
            {
                let target = self.folder.join(missing.swap_remove(wanted));
                write_atomically(&target, |file| std::io::copy(&mut entry, file).map(drop))?;
            }
        }
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Error::format(archive, format!("expected it to hold {}", missing.join(", "))))
        }
    }

    fn failure(&self, message: String) -> Error {
        Error::Fetch { url: self.url.clone(), message }
    }
}
