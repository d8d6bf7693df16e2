//! The root filesystem: Debian with a compiler, a repository of packages to install, an archive to extract, and the programs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::ways::shell;

/// What `apt` installs, beside what that needs: about eighty packages.
pub const PACKAGES: &str = "git python3 openssh-server nginx-light curl jq vim-tiny rsync cron sudo dbus man-db";

/// How.
pub const INSTALL: &str = "apt-get -qq update && apt-get -qq -y --no-install-recommends install $(cat /bench/packages)";

/// Files in the archive of `files`: a hundred directories with a thousand each.
const DIRECTORIES: usize = 100;
const FILES: usize = 1000;

/// The release, for the name of what is kept.
const RELEASE: &str = "bookworm";

/// The tar of the root filesystem; made once, by mmdebstrap.
pub fn archive() -> Result<PathBuf> {
    let directory = std::env::current_dir()?.join("target/sandbox-cost");
    let archive = directory.join(format!("{RELEASE}-{}-2.tar", std::env::consts::ARCH));
    if archive.exists() {
        return Ok(archive);
    }
    fs::create_dir_all(&directory)?;
    let work = tempfile::tempdir_in(&directory)?;
    let bench = work.path().join("bench");
    fs::create_dir(&bench)?;
    fs::write(bench.join("calls.c"), include_str!("calls.c"))?;
    fs::write(bench.join("hello.c"), "#include <stdio.h>\nint main(void) { puts(\"hello\"); return 0; }\n")?;
    fs::write(bench.join("true.c"), "int main(void) { return 0; }\n")?;
    fs::write(bench.join("packages"), PACKAGES)?;
    files(&bench.join("files.tar"))?;
    fs::write(work.path().join("finish"), FINISH)?;
    let made = work.path().join("root.tar");
    // How apt reaches the mirror from here is for making the tree alone: mmdebstrap takes it out again.
    let settings =
        shell("apt-config dump | grep -iE '^acquire::.*(proxy|check-|retries|timeout)' | grep -vi detect || true")?;
    let settings: Vec<_> = settings.lines().map(|line| format!("--aptopt='{}'", line.trim_end_matches(';'))).collect();
    shell(&format!(
        "mmdebstrap --quiet --variant=apt --include=gcc,libc6-dev,dpkg-dev {settings} \
         --customize-hook='cp -r {bench} \"$1\"/bench' --customize-hook='sh {finish} \"$1\" \"{PACKAGES}\"' \
         {RELEASE} {made} $(apt-get indextargets --format '$(REPO_URI)' Codename:{RELEASE} | head -1)",
        settings = settings.join(" "),
        bench = bench.display(),
        finish = work.path().join("finish").display(),
        made = made.display(),
    ))?;
    fs::rename(made, &archive)?;
    Ok(archive)
}

/// Downloads the packages, makes a repository of them, and compiles the programs.
const FINISH: &str = r#"
set -e
chroot "$1" apt-get -qq -y --no-install-recommends --download-only install $2
mkdir "$1/repository"
mv "$1"/var/cache/apt/archives/*.deb "$1/repository"
chroot "$1" sh -c 'cd /repository && dpkg-scanpackages --multiversion . > Packages 2>/dev/null'
rm -f "$1"/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/repository ./' > "$1/etc/apt/sources.list"
rm -rf "$1"/var/lib/apt/lists/*
chroot "$1" sh -c 'cd /bench && gcc -O2 -o calls calls.c && gcc -O2 -o true true.c && gcc -O2 -static -o true-static true.c'
"#;

/// Small files of several sizes, such as sources are.
fn files(path: &Path) -> Result<()> {
    let mut tar = tar::Builder::new(std::io::BufWriter::new(fs::File::create(path)?));
    let text = "static int number(int of) { return of + 1; }\n".repeat(100);
    for directory in 0..DIRECTORIES {
        for file in 0..FILES {
            let bytes = &text.as_bytes()[..(directory * 31 + file * 17) % text.len()];
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            tar.append_data(&mut header, format!("d{directory}/sub/f{file}"), bytes)?;
        }
    }
    tar.into_inner()?.into_inner()?;
    Ok(())
}
