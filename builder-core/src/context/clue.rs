//! Why a file that a Dockerfile names is not there: what people most often did.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use super::files::Files;
use crate::hint::Hint;
use crate::hint::suggest::nearest;
use crate::rootfs::FileKind;

/// Names shorter than this, in characters, are near too many others.
const SHORTEST_NAME: usize = 3;

/// Names shorter than this, in characters, are near those only that differ in one, or in the order of all.
const SHORT_NAME: usize = 6;

/// Why a file is probably not there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clue {
    /// It is there, and the ignore file hides it.
    Hidden {
        /// Line of the ignore file, counted from 1.
        line: usize,
        /// The pattern there.
        pattern: String,
    },
    /// Its name begins with `..`, which does not lead out of the tree.
    Outside,
    /// There is something with a name like it.
    Near {
        /// Path in the tree, without a leading `/`.
        path: PathBuf,
    },
    /// It is in the working directory of the stage that is copied from.
    InWorkdir {
        /// Path in the tree, with a leading `/`.
        path: PathBuf,
    },
}

impl Hint for Clue {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Hidden { line, pattern } => format!("line {line} (`{pattern}`) of the ignore file excludes it"),
            Self::Outside => {
                "`..` does not lead out of the context: build with a context that has the file, or give its \
                              directory with `--build-context NAME=DIR` and write `--from=NAME`"
                    .to_owned()
            }
            Self::Near { path } => format!("did you mean `{}`?", path.display()),
            Self::InWorkdir { path } => {
                format!("sources of `--from` begin at `/`, not at the stage's WORKDIR: write `{}`", path.display())
            }
        })
    }
}

impl Files {
    /// Why there is nothing at `path`, which was written as `written`.
    pub(crate) fn clue(&self, written: &str, path: &Path) -> Option<Clue> {
        if let Some((line, pattern)) = self.hidden_by(path)
            && self.is_there(path)
        {
            return Some(Clue::Hidden { line, pattern });
        }
        if self.host_path().is_some() && climbs_out(written) {
            return Some(Clue::Outside);
        }
        // As far as the path goes; a name that is near counts where one is missing.
        let mut plain = PathBuf::new();
        let mut components = path.components();
        for component in components.by_ref() {
            let followed = self.follow(&plain.join(component)).ok()?;
            if followed.found.is_some() {
                plain.push(component);
                continue;
            }
            let directory = self.follow(&plain).ok()?;
            let wanted = component.as_os_str().to_str().filter(|name| name.chars().count() >= SHORTEST_NAME)?;
            let entries = self.list(&directory.path).ok()?;
            let more = components.as_path().components().next().is_some();
            let usable = entries.iter().filter(|(_, found)| !more || found.metadata.kind != FileKind::File);
            let names: Vec<&str> = usable.filter_map(|(name, _)| OsStr::to_str(name)).collect();
            let near =
                names.iter().copied().filter(|name| wanted.chars().count() >= SHORT_NAME || nearly(wanted, name));
            let same = names.iter().find(|name| name.to_lowercase() == wanted.to_lowercase());
            let name = same.copied().or_else(|| nearest(wanted, near))?;
            return Some(Clue::Near { path: plain.join(name).components().chain(components).collect() });
        }
        None
    }
}

/// Whether two names differ in one character, or in the order of their characters.
fn nearly(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(|name| name.chars().collect::<Vec<_>>());
    let same = |pair: &(&char, &char)| pair.0 == pair.1;
    let ahead = one.iter().zip(&other).take_while(same).count();
    let behind = one.iter().rev().zip(other.iter().rev()).take_while(same).count();
    let sorted = |name: &[char]| {
        let mut name = name.to_vec();
        name.sort_unstable();
        name
    };
    ahead + behind + 1 >= one.len().max(other.len()) || sorted(&one) == sorted(&other)
}

/// Whether a path as written would leave the directory that it is meant to lie in.
fn climbs_out(written: &str) -> bool {
    let mut depth = 0_usize;
    for component in Path::new(written).components() {
        match component {
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return true,
            },
            Component::Normal(_) => depth += 1,
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Patterns;
    use crate::context::testing::build;

    #[test]
    fn what_people_did() {
        let root = tempfile::tempdir().expect("a temporary directory");
        build(root.path(), "requirements.txt=r src/main.py=m src/README.md=r ab=1 target/out=o lib->src conf.d/x=x");
        let patterns = Patterns::parse("# built\ntarget\n*.gone\n").expect("patterns");
        let files = Files::directory(root.path(), patterns).expect("a directory");
        for (written, expected) in [
            ("requirement.txt", Some("did you mean `requirements.txt`?")),
            ("src/mian.py", Some("did you mean `src/main.py`?")),
            ("lib/mian.py", Some("did you mean `lib/main.py`?")),
            ("scr/main.py", Some("did you mean `src/main.py`?")),
            ("src/readme.MD", Some("did you mean `src/README.md`?")),
            ("target/out", Some("line 2 (`target`) of the ignore file excludes it")),
            ("target/otu", None),
            ("x.gone", None),
            ("aa", None),
            ("sub", None),
            ("nothing/like/it", None),
            ("confd/x", Some("did you mean `conf.d/x`?")),
            ("requirements.txt/x", None),
            ("src/../../etc/passwd", Some("`..` does not lead out of the context")),
        ] {
            let path: PathBuf = Path::new(written).components().filter(|c| *c != Component::ParentDir).collect();
            let told = files.clue(written, &path).and_then(|clue| clue.hint());
            match expected {
                Some(words) => assert!(told.as_deref().is_some_and(|told| told.contains(words)), "{written}: {told:?}"),
                None => assert_eq!(told, None, "{written}"),
            }
        }
    }
}
