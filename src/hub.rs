//! Names of models: a folder or file, else what the Hugging Face cache has, else what the hub has.
//!
//! The environment variables are those of Python's `huggingface_hub`: `HF_HUB_CACHE` or `HF_HOME`
//! (where the cache is), `HF_ENDPOINT`, `HF_TOKEN`, and `HF_HUB_OFFLINE`, with which no network is
//! tried.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};

use crate::error::{Error, Result};

/// Files of a model besides its weights, of which it has some.
const FILES: [&str; 18] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "2_Dense/pytorch_model.bin",
    "3_Normalize/config.json",
];

/// Whether downloads show no progress.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on, downloads of this program show no progress.
pub fn be_quiet() {
    QUIET.store(true, Relaxed);
}

/// Weights, the best kind first: one file, or the index of several.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// Where models are looked for.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Folder with `models--ORG--NAME` folders in it.
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// Whom to be there.
    pub token: Option<String>,
    /// Whether to try no network.
    pub offline: bool,
}

/// The folder or file of the model called `name`, as the environment says where to look.
///
/// # Errors
/// Says where the model was looked for.
pub fn resolve(name: &Path) -> Result<PathBuf> {
    if name.exists() {
        return Ok(name.to_path_buf());
    }
    Hub::from_env().find(name)
}

impl Hub {
    /// What the environment says.
    pub fn from_env() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let base = set("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(Path::new(&set("HOME")?).join(".cache")));
            base.unwrap_or_else(|| ".cache".into()).join("huggingface")
        });
        let token = set("HF_TOKEN").or_else(|| fs::read_to_string(home.join("token")).ok());
        let yes = |value: String| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Self {
            cache: set("HF_HUB_CACHE").map(PathBuf::from).unwrap_or_else(|| home.join("hub")),
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(yes),
        }
    }

    /// Finds `ORG/NAME` (a folder), or `ORG/NAME/FILE.gguf`, in the cache or on the hub.
    ///
    /// # Errors
    /// Says where the model was looked for.
    pub fn find(&self, name: &Path) -> Result<PathBuf> {
        let Some((repository, file)) = repository(name) else {
            return Err(Error::file(name, "there is no such folder or file"));
        };
        let cached = Cache::new(self.cache.clone()).repo(Repo::model(repository.clone()));
        let complete = match &file {
            Some(file) => cached.get(file),
            None => cached.get("config.json").and_then(|path| complete(path.parent()?)),
        };
        if let Some(path) = complete {
            return Ok(path);
        }
        let nowhere = format!("there is no such folder or file, {} does not have it", self.cache.display());
        if self.offline {
            return Err(Error::file(name, format!("{nowhere}, and HF_HUB_OFFLINE is set")));
        }
        let failed = |e: ApiError| Error::file(name, format!("{nowhere}, and {} says: {e}", self.endpoint));
        let api = ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.trim_end_matches('/').to_string())
            .with_token(self.token.clone())
            .with_progress(!QUIET.load(Relaxed) && std::io::stderr().is_terminal())
            .build()
            .map_err(failed)?;
        let repo = api.repo(Repo::model(repository));
        match file {
            Some(file) => repo.get(&file).map_err(failed),
            None => fetch(&repo, name, failed),
        }
    }
}

/// Repository and file that a name means; `None` for what can only be a path.
fn repository(name: &Path) -> Option<(String, Option<String>)> {
    let text = name.to_str()?;
    let parts: Vec<&str> = text.split('/').collect();
    let plain = |part: &&str| {
        let letters = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        letters && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    if !parts.iter().all(plain) {
        return None;
    }
    match parts.as_slice() {
        // Where there is such a folder here, the rest is a slip of the hand.
        [owner, _] | [owner, _, _] if Path::new(owner).is_dir() => None,
        [owner, model] => Some((format!("{owner}/{model}"), None)),
        [owner, model, file] if file.ends_with(".gguf") => {
            Some((format!("{owner}/{model}"), Some(file.to_string())))
        }
        _ => None,
    }
}

/// `folder`, if all of a model's weights are in it.
fn complete(folder: &Path) -> Option<PathBuf> {
    let has = |name: &str| folder.join(name).exists();
    let weights = WEIGHTS.into_iter().find(|name| has(name))?;
    let whole =
        !weights.ends_with(".index.json") || shards(&folder.join(weights))?.iter().all(|shard| has(shard));
    whole.then(|| folder.to_path_buf())
}

/// The files that an index of weights names.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_str(&fs::read_to_string(index).ok()?).ok()?;
    let files = index["weight_map"].as_object()?.values();
    files.map(|file| Some(file.as_str()?.to_string())).collect()
}

/// Fetches what a model needs; the folder that it is then in.
fn fetch(repo: &ApiRepo, name: &Path, failed: impl Fn(ApiError) -> Error) -> Result<PathBuf> {
    let there: BTreeSet<String> =
        repo.info().map_err(&failed)?.siblings.into_iter().map(|file| file.rfilename).collect();
    let weights = WEIGHTS.into_iter().find(|weights| there.contains(*weights));
    let Some(weights) = weights.filter(|_| there.contains("config.json")) else {
        let gguf: Vec<&str> =
            there.iter().map(String::as_str).filter(|file| file.ends_with(".gguf")).collect();
        return match gguf.as_slice() {
            [] => Err(Error::file(
                name,
                "the hub's model has no config.json with weights in safetensors or PyTorch's format",
            )),
            [file] => repo.get(file).map_err(failed),
            several => {
                let why = format!(
                    "the hub has several GGUF files of it; give {}/FILE with one of: {}",
                    name.display(),
                    several.join(", ")
                );
                Err(Error::file(name, why))
            }
        };
    };
    let path = repo.get(weights).map_err(&failed)?;
    let folder = path.parent().unwrap_or(Path::new(".")).to_path_buf();
    if weights.ends_with(".index.json") {
        let shards =
            shards(&path).ok_or_else(|| Error::file(&path, "weight_map is missing, or names no files"))?;
        for shard in shards {
            if !there.contains(&shard) {
                return Err(Error::file(&path, format!("names {shard:?}, which the hub does not have")));
            }
            repo.get(&shard).map_err(&failed)?;
        }
    }
    for file in FILES.into_iter().filter(|file| there.contains(*file)) {
        repo.get(file).map_err(&failed)?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A hub of one model, `org/model`, at a free port of this machine.
    struct Server {
        endpoint: String,
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        fn start(files: &[(&str, &str)], token: Option<&str>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let requests = Arc::new(Mutex::new(Vec::new()));
            let files: HashMap<String, String> =
                files.iter().map(|(name, content)| (name.to_string(), content.to_string())).collect();
            let (seen, token) = (requests.clone(), token.map(String::from));
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(|stream| stream.ok()) {
                    answer(stream, &files, token.as_deref(), &seen);
                }
            });
            Self { endpoint, requests }
        }

        fn requests(&self) -> usize {
            self.requests.lock().unwrap().len()
        }
    }

    fn answer(
        mut stream: TcpStream,
        files: &HashMap<String, String>,
        token: Option<&str>,
        seen: &Mutex<Vec<String>>,
    ) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(|line| line.ok());
        let Some(request) = lines.next() else { return };
        let headers: Vec<String> =
            lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
        let path = request.split(' ').nth(1).unwrap_or_default().to_string();
        seen.lock().unwrap().push(path.clone());
        let header = |name: &str| {
            headers.iter().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_string()))
        };
        let refused = token.is_some_and(|token| header("authorization:") != Some(format!("bearer {token}")));
        let file = path.strip_prefix("/org/model/resolve/main/").and_then(|name| files.get_key_value(name));
        let (status, more, body) = match (path.as_str(), file) {
            _ if refused => ("401 Unauthorized", String::new(), Vec::new()),
            (_, Some((name, content))) => {
                let range = header("range:").unwrap_or_default();
                let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
                let first: usize = first.parse().unwrap_or(0);
                let last = last.parse().unwrap_or(content.len()).min(content.len() - 1);
                let more = format!(
                    "ETag: \"{}\"\r\nX-Repo-Commit: 0123abcd\r\nContent-Range: bytes {first}-{last}/{}\r\n",
                    name.replace('/', "-"),
                    content.len()
                );
                ("206 Partial Content", more, content.as_bytes()[first..=last].to_vec())
            }
            ("/api/models/org/model/revision/main" | "/api/models/org/model", None) => {
                let siblings: Vec<_> =
                    files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
                let info = serde_json::json!({"sha": "0123abcd", "siblings": siblings});
                ("200 OK", String::new(), info.to_string().into_bytes())
            }
            _ => ("404 Not Found", String::new(), Vec::new()),
        };
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n", body.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
    }

    fn hub(cache: &Path, endpoint: &str) -> Hub {
        Hub { cache: cache.to_path_buf(), endpoint: endpoint.into(), token: None, offline: false }
    }

    const INDEX: &str =
        r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;

    #[test]
    fn a_model_is_fetched_once_and_then_found_without_the_network() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(
            &[
                ("config.json", "{}"),
                ("tokenizer.json", "{ }"),
                ("model.safetensors.index.json", INDEX),
                ("model-1-of-2.safetensors", "one"),
                ("model-2-of-2.safetensors", "two"),
                ("pytorch_model.bin", "not wanted"),
                ("README.md", "not wanted"),
            ],
            Some("secret"),
        );
        let mut hub = hub(dir.path(), &server.endpoint);
        let said = hub.find(Path::new("org/model")).unwrap_err().to_string();
        assert!(said.contains("org/model") && said.contains("401"), "{said}");
        hub.token = Some("secret".into());
        let folder = hub.find(Path::new("org/model")).unwrap();
        assert!(folder.ends_with("models--org--model/snapshots/0123abcd"), "{}", folder.display());
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!([read("tokenizer.json"), read("model-2-of-2.safetensors")], ["{ }", "two"]);
        assert!(!folder.join("pytorch_model.bin").exists() && !folder.join("README.md").exists());
        let before = server.requests();
        assert_eq!(hub.find(Path::new("org/model")).unwrap(), folder);
        hub.offline = true;
        assert_eq!(hub.find(Path::new("org/model")).unwrap(), folder);
        assert_eq!(server.requests(), before, "what the cache has is not asked for");

        // A model that is there in part is no model, and is made whole where the network may be used.
        fs::remove_file(folder.join("model-2-of-2.safetensors")).unwrap();
        let said = hub.find(Path::new("org/model")).unwrap_err().to_string();
        assert!(said.contains("HF_HUB_OFFLINE") && said.contains(dir.path().to_str().unwrap()), "{said}");
        hub.offline = false;
        assert_eq!(hub.find(Path::new("org/model")).unwrap(), folder);
        assert_eq!(read("model-2-of-2.safetensors"), "two");
    }

    #[test]
    fn one_gguf_file_may_be_named_or_be_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(&[("a.Q4_0.gguf", "four"), ("a.Q8_0.gguf", "eight")], None);
        let hub = hub(dir.path(), &server.endpoint);
        let said = hub.find(Path::new("org/model")).unwrap_err().to_string();
        assert!(said.contains("org/model/FILE") && said.contains("a.Q4_0.gguf, a.Q8_0.gguf"), "{said}");
        let file = hub.find(Path::new("org/model/a.Q8_0.gguf")).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "eight");
        let server = Server::start(&[("only.gguf", "five")], None);
        let other = tempfile::tempdir().unwrap();
        let file = self::hub(other.path(), &server.endpoint).find(Path::new("org/model")).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "five");
    }

    #[test]
    fn a_cache_of_pythons_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--org--model");
        let snapshot = model.join("snapshots/ffff");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(model.join("refs")).unwrap();
        fs::write(model.join("refs/main"), "ffff").unwrap();
        let hub = Hub { offline: true, ..hub(dir.path(), "http://127.0.0.1:1") };
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert!(hub.find(Path::new("org/model")).is_err(), "without weights it is no model");
        fs::write(snapshot.join("pytorch_model.bin"), "x").unwrap();
        assert_eq!(hub.find(Path::new("org/model")).unwrap(), snapshot);
    }

    #[test]
    fn what_can_only_be_a_path_is_never_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(&[("config.json", "{}")], None);
        let hub = hub(dir.path(), &server.endpoint);
        for name in [
            "nowhere",
            "src/nowhere",
            "/org/model",
            "org/model/config.json",
            "../model",
            "a/b/c/d.gguf",
            "a b/c",
            "",
        ] {
            let said = hub.find(Path::new(name)).unwrap_err().to_string();
            assert!(said.contains("no such folder or file"), "{said}");
        }
        assert_eq!(server.requests(), 0);
        let said = hub.find(Path::new("org/other")).unwrap_err().to_string();
        assert!(
            said.contains("org/other") && said.contains("404") && said.contains(&server.endpoint),
            "{said}"
        );
        let said = hub.find(Path::new("org/model")).unwrap_err().to_string();
        assert!(said.contains("no config.json with weights"), "{said}");
    }
}
