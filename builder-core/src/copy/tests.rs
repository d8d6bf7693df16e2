use std::fs;
use std::time::{Duration, SystemTime};

use super::testing::{Trees, action, check, check_error};
use super::*;
use crate::cancel::Cancel;
use crate::context::testing::show;
use crate::context::{Files, FilesError, Patterns};
use crate::plan::WorkdirAction;
use crate::rootfs::Rootfs;

const TREE: &str = "a.txt=a b.txt=b c.md=c d/1.txt=1 d/sub/2.txt=2 d/sub/.h=h";

#[test]
fn files() {
    check(TREE, "", "COPY a.txt /new", "new=a");
    check(TREE, "", "COPY a.txt /dir/", "dir/ dir/a.txt=a");
    check(TREE, "tmp/", "COPY a.txt /tmp", "tmp/ tmp/a.txt=a");
    check(TREE, "", "COPY a.txt /deep/er/name", "deep/ deep/er/ deep/er/name=a");
    check(TREE, "", "COPY ./c.md /dir/./x/../c.md", "dir/ dir/c.md=c");
    check(TREE, "", "COPY a.txt /slashdot/.", "slashdot/ slashdot/a.txt=a");
    check(TREE, "", "COPY ../../a.txt /", "a.txt=a");
    check(TREE, "", "COPY d/../../../b.txt /y", "y=b");
    check(TREE, "", "COPY a.txt b.txt /dst", "dst=b");
    check(TREE, "dst=x", "COPY a.txt /dst", "dst=a");
    check(TREE, "home/", "COPY a.txt b.txt /home", "home/ home/a.txt=a home/b.txt=b");
    check("a.txt=1 x/a.txt=2", "", "COPY a.txt x/a.txt /d/", "d/ d/a.txt=2");
}

#[test]
fn directories() {
    let content = "one/ one/1.txt=1 one/sub/ one/sub/.h=h one/sub/2.txt=2";
    check(TREE, "", "COPY d /one", content);
    check(TREE, "one/", "COPY d/ /one/", content);
    check(TREE, "", "COPY d/. /one", content);
    check("e/1/2/ e/only/", "", "COPY e /e", "e/ e/1/ e/1/2/ e/only/");
    check("none/", "", "COPY none /x/y", "x/ x/y/");
    check("", "", "COPY . /x/", "x/");
    check("x/a=1 x/b=b y/a=2 y/c=c", "", "COPY x/ y/ /m/", "m/ m/a=2 m/b=b m/c=c");
    check("s/d/@700 s/d/f=x", "t/@711 t/d/@1777", "COPY s /t", "t/@711 t/d/@700 t/d/f=x");
}

#[test]
fn wildcards() {
    check(TREE, "", "COPY *.txt /s/", "s/ s/a.txt=a s/b.txt=b");
    check(TREE, "", "COPY d*/1.txt /s/", "s/ s/1.txt=1");
    check(TREE, "", "COPY */*.txt /s/", "s/ s/1.txt=1");
    check(TREE, "", "COPY **/*.txt /s/", "s/ s/1.txt=1");
    check(TREE, "", "COPY d[^x]1.txt /s/", "s/ s/1.txt=1");
    check("d1/a=a d2/b=b d2/s/c=c", "", "COPY d* /n/", "n/ n/a=a n/b=b n/s/ n/s/c=c");
    check(TREE, "", "COPY *.md *.none /m/", "m/ m/c.md=c");
    check(TREE, "", "COPY *.none /m/", "");
    check(TREE, "", "COPY a.tx? /renamed", "renamed=a");
    check("file[1].txt=y file1.txt=n", "", "COPY file[[]1].txt /l/", "l/ l/file[1].txt=y");
    check("back\\slash=y", "", "COPY back\\slash /x", "x=y");
    check("x*y=y xzy=n", "", "COPY x\\*? /x/", "x/ x/x*y=y");
    check_error(TREE, "", "COPY nodir/*.txt /x/", "lstat /nodir: no such file or directory");
    check_error(TREE, "", "COPY a[ /x/", "syntax error in pattern");
}

#[test]
fn missing_sources() {
    check_error(TREE, "", "COPY a.txt nope.txt /x/", "\"/nope.txt\": not found");
    check_error(TREE, "", "COPY *.txt nope.txt /x/", "\"/nope.txt\": not found");
    check_error(TREE, "", "COPY a.txt/x /x/", "\"/a.txt/x\": not found");
    check_error("dangling->nowhere", "", "COPY dangling /x", "\"/dangling\": not found");
    check_error("f=f dangling->nowhere", "", "COPY * /x/", "\"/dangling\": not found");
    check_error("out->/etc/passwd", "", "COPY out /x", "\"/out\": not found");
    check_error("up->../../..", "", "COPY up/secret /x", "\"/up/secret\": not found");
    check_error("a->b b->a", "", "COPY a /x", "too many levels of symbolic links");
    let mut trees = Trees::new(TREE, "");
    trees.ignore = "# one\n*.txt\n!b.txt".to_owned();
    let error = trees.run("COPY a.txt /x").expect_err("hidden");
    assert!(error.to_string().contains("\"/a.txt\": not found"));
    assert_eq!(crate::hint::Hint::hint(&error).as_deref(), Some("line 2 (`*.txt`) of the ignore file excludes it"));
}

#[test]
fn ignored_files_do_not_exist() {
    let mut trees = Trees::new("d/e/g.txt=g d/e/f=f d/x=x real/f=f real/g=g link->real only/sub/f=f logs/a.dat=a", "");
    trees.ignore = "d/*\n!d/e/g.txt\nreal\n!real/f\nonly/*\n**/*.dat".to_owned();
    trees.run("COPY . /all/").expect("copy");
    trees.run("COPY link/f * /w/").expect("copy");
    assert_eq!(
        show(trees.target.path()),
        "all/ all/d/ all/d/e/ all/d/e/g.txt=g all/link->real all/logs/ all/only/ all/real/ all/real/f=f \
         w/ w/e/ w/e/g.txt=g w/f=f"
    );
}

#[test]
fn links_of_the_source() {
    let source = "a.txt=a d/1.txt=1 lfile->a.txt ldir->d t/up->../a.txt t/self->x t/abs->/abs/olute r/f=f abs->/r/f";
    check(source, "", "COPY lfile /1", "1=a");
    check(source, "", "COPY lfile /dir/", "dir/ dir/lfile=a");
    check(source, "", "COPY ldir /2", "2/ 2/1.txt=1");
    check(source, "", "COPY ldir/1.txt /4", "4=1");
    check(source, "", "COPY l* /5/", "5/ 5/1.txt=1 5/lfile=a");
    check(source, "", "COPY t /6", "6/ 6/abs->/abs/olute 6/self->x 6/up->../a.txt");
    check(source, "", "COPY abs /7", "7=f");
    check("one->two two->three three->real/f real/f=f", "", "COPY one /x", "x=f");
    check("real/d/f=f l->real", "", "COPY */f /x/", "");
}

#[test]
fn links_of_the_target() {
    let target = "usr/lib/ lib->usr/lib o/f=old o/file->f o/dangling->gone o/gonedir->/new/dir";
    check(
        "a=a",
        target,
        "COPY a /lib/",
        &format!(
            "{} usr/ usr/lib/ usr/lib/a=a",
            "lib->usr/lib o/ o/dangling->gone o/f=old o/file->f o/gonedir->/new/dir"
        ),
    );
    check("a=a", "o/f=old o/l->f", "COPY a /o/l", "o/ o/f=a o/l->f");
    check("l=a", "o/f=old o/l->f", "COPY l /o/", "o/ o/f=old o/l=a");
    check("a=a", "o/dangling->gone", "COPY a /o/dangling", "o/ o/dangling->gone o/gone=a");
    check("a=a", "l->/new/dir", "COPY a /l/", "l->/new/dir new/ new/dir/ new/dir/a=a");
    check("d/f=f", "l->/new/dir", "COPY d /l/d", "l->/new/dir new/ new/dir/ new/dir/d/ new/dir/d/f=f");
    check("t/suid->else t/l->del", "suid=x l->y", "COPY t /", "l->del suid->else");
    check("a=a", "x->/../../../out", "COPY a /x/", "out/ out/a=a x->/../../../out");
    check("a=a", "d/e/ l->d/e", "COPY a /l/../x", "d/ d/e/ l->d/e x=a");
}

#[test]
fn conflicts_of_kind() {
    check_error("a=a", "f=f", "COPY a /f/", "mkdir /f: not a directory");
    check_error("a=a", "f=f", "COPY a /f/x", "mkdir /f: not a directory");
    check_error("d/f=f", "suid=x", "COPY d /suid", "cannot copy to non-directory: /suid");
    check_error("t/d/f=f", "o/d=x", "COPY t /o", "cannot copy to non-directory: /o/d");
    check_error("t/d/f=f", "o/d->e o/e/", "COPY t /o", "cannot copy to non-directory: /o/d");
    check_error("t/keep=x", "o/keep/", "COPY t /o", "cannot replace to directory /o/keep with file");
}

#[test]
fn owners() {
    let passwd = "etc/passwd=app:x:1000:1000:: etc/group=staff:x:50:";
    let etc = "etc/ etc/group=staff:x:50: etc/passwd=app:x:1000:1000::";
    check("d/1=1", passwd, "COPY d /o", &format!("{etc} o/ o/1=1"));
    check("d/#5:6 d/1#7:8=1", passwd, "COPY d /o", &format!("{etc} o/ o/1=1"));
    check("d/1#7:8=1", passwd, "COPY --from=s d /o", &format!("{etc} o/ o/1#7:8=1"));
    check("d/1=1", passwd, "COPY --chown=app:staff d /n/o", &format!("{etc} n/#1000:50 n/o/#1000:50 n/o/1#1000:50=1"));
    check("d/s/1=1", &format!("{passwd} o/"), "COPY --chown=5 d /o", &format!("{etc} o/ o/s/#5:5 o/s/1#5:5=1"));
    check("a=a", "", "COPY --chown=12:34 a /x/", "x/#12:34 x/a#12:34=a");
    check_error("a=a", "", "COPY --chown=app a /x", "invalid user index: -1");
    check(
        "passwd=app:x:7:7:: x=x",
        passwd,
        "COPY --chown=app passwd x /etc/",
        "etc/ etc/group=staff:x:50: etc/passwd#1000:1000=app:x:7:7:: etc/x#1000:1000=x",
    );
}

#[test]
fn modes() {
    check(
        "f@4755=f g@400=g d/@700 d/s/@1777 d/s/f@600=x",
        "",
        "COPY f g d /m/",
        "m/ m/f@4755=f m/g@400=g m/s/@1777 m/s/f@600=x",
    );
    check("d/s/f=x", "", "COPY --chmod=4711 d /a/b", "a/@711 a/b/@711 a/b/s/@4711 a/b/s/f@4711=x");
    check("d/s/@700 d/s/f@600=x", "", "COPY --chmod=go+rX d /a/b/", "a/ a/b/ a/b/s/ a/b/s/f=x");
    check("d/f=x d/l->f", "", "COPY --chmod=600 d /t", "t/@600 t/f@600=x t/l->f");
    check("d/s/f=x", "t/ t/s/@711", "COPY --chmod=0640 d /t", "t/ t/s/@640 t/s/f@640=x");
    check("a=a", "", "COPY --chown=1:2 --chmod=6755 a /x", "x@6755#1:2=a");
}

#[test]
fn heredocs() {
    check("", "", "COPY <<x /f", "f=body");
    check("", "", "COPY <<x <<y /d/", "d/ d/x=body d/y=body");
    check("a=a", "d/", "COPY --chown=1:2 --chmod=700 a <<y /d", "d/ d/a@700#1:2=a d/y@700#1:2=body");
}

#[test]
fn excludes() {
    let source = "a.t=a s/b.t=b s/c=c d/1.t=1";
    check(source, "", "COPY --exclude=*.t . /1/", "1/ 1/d/ 1/d/1.t=1 1/s/ 1/s/b.t=b 1/s/c=c");
    check(source, "", "COPY --exclude=**/*.t . /2/", "2/ 2/d/ 2/s/ 2/s/c=c");
    check(source, "", "COPY --exclude=**/*.t --exclude=!s/b.t . /3/", "3/ 3/d/ 3/s/ 3/s/b.t=b 3/s/c=c");
    check(source, "", "COPY --exclude=s --exclude=!s/b.t . /4/", "4/ 4/a.t=a 4/d/ 4/d/1.t=1 4/s/ 4/s/b.t=b");
    check(source, "", "COPY --exclude=*.t * /n/", "n/ n/a.t=a n/c=c");
    check(source, "", "COPY --exclude=* s /6/", "6/");
    check_error(source, "", "COPY --exclude=a[ s /6/", "syntax error in pattern");
}

#[test]
fn parents() {
    check(TREE, "", "COPY --parents a.txt d/sub/2.txt /x/", "x/ x/a.txt=a x/d/ x/d/sub/ x/d/sub/2.txt=2");
    check(TREE, "", "COPY --parents d/sub/. /y/", "y/ y/d/ y/d/sub/ y/d/sub/.h=h y/d/sub/2.txt=2");
    check(TREE, "", "COPY --parents ./d/1.txt /z", "z/ z/d/ z/d/1.txt=1");
    check(TREE, "", "COPY --parents **/*.txt /x/", "x/ x/a.txt=a x/b.txt=b x/d/ x/d/1.txt=1 x/d/sub/ x/d/sub/2.txt=2");
    check(TREE, "", "COPY --parents ./d/./sub/2.txt /x/", "x/ x/sub/ x/sub/2.txt=2");
    check(TREE, "", "COPY --parents d/./*.txt /x/", "x/ x/1.txt=1");
    check("p/q/r/s=s", "", "COPY --parents p/q/./r/./s /w/", "w/ w/r/ w/r/s=s");
    check(TREE, "", "COPY --parents d/*.none /x/", "x/");
    check(TREE, "", "COPY --parents --exclude=**/sub d /2/", "2/ 2/d/ 2/d/1.txt=1");
    check(TREE, "", "COPY --parents --exclude=**/2.txt d/sub/2.txt /2/", "2/");
    check(
        "m/@700 m/n/@750 m/n/f=f",
        "",
        "COPY --parents --chown=1:2 m/n/f /o/",
        "o/#1:2 o/m/@700#1:2 o/m/n/@750#1:2 o/m/n/f#1:2=f",
    );
    check(
        "m/@700 m/n/@750 m/n/f=f",
        "",
        "COPY --parents --chmod=640 m/n/f /o/",
        "o/@640 o/m/@640 o/m/n/@640 o/m/n/f@640=f",
    );
    check(
        "opt/sticky/@711 opt/sticky/f=f",
        "opt/ opt/sticky/@1777#5:6",
        "COPY --parents opt/sticky/f /",
        "opt/ opt/sticky/@711#5:6 opt/sticky/f=f",
    );
    check("a.txt=a s/l->../a.txt", "", "COPY --parents s/l /x/", "x/ x/s/ x/s/l->../a.txt");
    check_error(TREE, "", "COPY --parents d/nope.txt /x/", "\"/d/nope.txt\": not found");
    check_error(TREE, "", "COPY --parents . /x/", "\"/\": not found");
    check_error("d/1=1 l->d", "", "COPY --parents l/1 /x/", "\"/l/1\": not found");
}

#[test]
fn hard_links_stay_within_one_source() {
    check("h/a=x h/b==h/a h/s/c==h/a", "", "COPY h /h", "h/ h/a=x h/b==h/a h/s/ h/s/c==h/a");
    check("h/a=x h/b==h/a", "", "COPY h/a h/b /h/", "h/ h/a=x h/b=x");
    check("h/a=x h/b==h/a", "", "COPY h/* /h/", "h/ h/a=x h/b=x");
    check("h/a=x h/b==h/a", "h/b=old", "COPY h /h", "h/ h/a=x h/b==h/a");
}

#[test]
fn special_files() {
    check("s/pipe@620|", "", "COPY s /s", "s/ s/pipe@620|");
    let trees = Trees::new("", "");
    let _socket = std::os::unix::net::UnixListener::bind(trees.source.path().join("sock")).expect("bind");
    trees.run("COPY . /s/").expect("copy");
    assert!(show(trees.target.path()).starts_with("s/ s/sock@755="), "{}", show(trees.target.path()));
}

#[test]
fn names_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let trees = Trees::new("plain=p", "");
    let name = std::ffi::OsStr::from_bytes(b"bad\xff");
    fs::write(trees.source.path().join(name), "x").expect("write");
    trees.run("COPY . /x/").expect("copy");
    trees.run("COPY bad? /y/").expect("copy");
    assert_eq!(fs::read(trees.target.path().join("x").join(name)).expect("copied"), b"x");
    assert_eq!(fs::read(trees.target.path().join("y").join(name)).expect("copied"), b"x");
}

#[test]
fn times() {
    let trees = Trees::new("d/s/f=f a=a", "old/");
    let set = |path: &str, seconds: u64| {
        let file = fs::File::open(trees.source.path().join(path)).expect(path);
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).expect(path);
    };
    set("d/s/f", 1000);
    set("d/s", 2000);
    set("d", 3000);
    trees.run("COPY d /old").expect("copy");
    trees.run("COPY d /new/root").expect("copy");
    trees.run("COPY --parents d/s /par/").expect("copy");
    for (path, expected) in
        [("old", 3000), ("old/s", 2000), ("old/s/f", 1000), ("new/root", 3000), ("new/root/s", 2000), ("par/d/s", 2000)]
    {
        assert_eq!(trees.mtime(path), expected, "{path}");
    }
    for path in ["new", "par", "par/d"] {
        assert!(trees.mtime(path) > 1_000_000_000, "{path} has the time of the build");
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that cannot run says so")]
fn only_the_capability_and_user_attributes_are_copied() {
    let trees = Trees::new("d/f=f", "");
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let set = |name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(trees.source.path().join("d/f"), name, value, flags)
    };
    if let Err(error) = set("security.capability", capability).and_then(|()| set("trusted.x", b"t")) {
        eprintln!("skipped: {error} while setting attributes");
        return;
    }
    trees.run("COPY --chown=1:2 --chmod=700 d /d").expect("copy");
    let attributes = Rootfs::open(trees.target.path()).and_then(|target| target.xattrs("d/f".as_ref())).expect("read");
    assert_eq!(attributes, [("security.capability".into(), capability.to_vec())]);
}

#[test]
fn the_hash_covers_what_reaches_the_result() {
    let hash = |source: &str, instruction: &str| {
        let trees = Trees::new(source, "");
        let files = Files::directory(trees.source.path(), Patterns::default()).expect("a directory");
        let (action, cancel) = (action(instruction), Cancel::default());
        let resolved = resolve(&action, &files, &cancel).expect(instruction);
        resolved.content_hash(&action, &files, &cancel).expect(instruction).whole
    };
    let same = |a: &str, b: &str, instruction: &str| assert_eq!(hash(a, instruction), hash(b, instruction), "{a} {b}");
    let other = |a: &str, b: &str, instruction: &str| assert_ne!(hash(a, instruction), hash(b, instruction), "{a} {b}");
    same("a=a x=x", "a=a y=y", "COPY a /");
    same("d/@700 d/a=a", "d/@711 d/a=a", "COPY d /");
    same("a=a b=b", "a=a b=c", "COPY --exclude=b . /");
    other("a=a", "a=b", "COPY a /");
    other("a=a", "a@600=a", "COPY a /");
    other("a=a", "b=a", "COPY * /");
    other("d/a=a", "d/b=a", "COPY d /");
    other("d/l->a", "d/l->b", "COPY d /");
    other("d/x=", "d/x/", "COPY d /");
    other("d/a=a d/b=b", "d/a=b d/b=a", "COPY d /");
}

#[test]
fn items_tell_which_file_changed() {
    let trees = Trees::new("d/a=a d/s/b=b c=c", "");
    let files = Files::directory(trees.source.path(), Patterns::default()).expect("a directory");
    let items = || {
        let (action, cancel) = (action("COPY d c <<h /"), Cancel::default());
        let resolved = resolve(&action, &files, &cancel).expect("resolve");
        resolved.content_hash(&action, &files, &cancel).expect("hashed").items
    };
    let before = items();
    let names: Vec<&str> = before.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["/d/a", "/d/s", "/d/s/b", "/c", "<<h"]);
    fs::write(trees.source.path().join("d/s/b"), "B").expect("write");
    let changed: Vec<String> =
        items().into_iter().zip(before).filter(|(now, then)| now != then).map(|(now, _)| now.0).collect();
    assert_eq!(changed, ["/d/s/b"]);
}

#[test]
fn a_file_that_changes_between_hash_and_copy_is_an_error() {
    let trees = Trees::new("a=a", "");
    let files = Files::directory(trees.source.path(), Patterns::default()).expect("a directory");
    let target = Rootfs::open(trees.target.path()).expect("open");
    let action = action("COPY a /");
    let resolved = resolve(&action, &files, &Cancel::default()).expect("resolve");
    fs::write(trees.source.path().join("a"), "longer").expect("write");
    let error = apply(&action, &resolved, &files, &target, &Cancel::default()).expect_err("changed");
    assert!(matches!(error, CopyError::Files(FilesError::Changed { .. })), "{error:?}");
    let resolved = resolve(&action, &files, &Cancel::default()).expect("resolve");
    fs::remove_file(trees.source.path().join("a")).expect("rm");
    std::os::unix::fs::symlink("/etc/passwd", trees.source.path().join("a")).expect("symlink");
    let error = apply(&action, &resolved, &files, &target, &Cancel::default()).expect_err("changed");
    assert!(matches!(error, CopyError::Files(FilesError::Changed { .. })), "{error:?}");
}

#[test]
fn cancelled() {
    let trees = Trees::new("d/a=a", "");
    let files = Files::directory(trees.source.path(), Patterns::default()).expect("a directory");
    let cancel = Cancel::default();
    cancel.cancel();
    assert!(matches!(resolve(&action("COPY d /"), &files, &cancel), Err(CopyError::Cancelled)));
}

#[test]
fn hashes_are_kept_between_builds() {
    let trees = Trees::new("d/a=aaa d/b=bb", "");
    let kept = tempfile::tempdir().expect("a temporary directory");
    // The clock of the file system has to move on before a file counts as settled.
    std::thread::sleep(Duration::from_millis(60));
    let build = || {
        let files = Files::directory(trees.source.path(), Patterns::default()).expect("a directory");
        let files = files.with_hash_cache(kept.path());
        let (action, cancel) = (action("COPY d /"), Cancel::default());
        let resolved = resolve(&action, &files, &cancel).expect("resolve");
        let hash = resolved.content_hash(&action, &files, &cancel).expect("hashed").whole;
        files.save_hashes().expect("save");
        (hash, files.hash_counts())
    };
    let (first, counts) = build();
    assert_eq!((counts.read, counts.bytes, counts.known), (2, 5, 0));
    let (second, counts) = build();
    assert_eq!((second, counts.read, counts.known), (first, 0, 2));
    fs::write(trees.source.path().join("d/a"), "AAA").expect("write");
    let (third, counts) = build();
    assert_ne!(third, first);
    assert_eq!((counts.read, counts.known), (1, 1));
    let file = fs::read_dir(kept.path()).expect("list").next().expect("one file").expect("one file").path();
    let mut bytes = fs::read(&file).expect("read");
    bytes[40] ^= 1;
    fs::write(&file, bytes).expect("write");
    assert_eq!(build().1.known, 0, "a damaged file counts as missing");
}

#[test]
fn workdir_makes_directories() {
    let make = |target: &str, path: &str, user: &str, epoch| {
        let trees = Trees::new("", target);
        let action = WorkdirAction { path: path.to_owned(), user: user.to_owned(), source_date_epoch: epoch };
        let made = workdir(&action, &Rootfs::open(trees.target.path()).expect("open"));
        made.map(|()| (show(trees.target.path()), trees))
    };
    let shown = |target: &str, path: &str, user: &str| make(target, path, user, None).expect(path).0;
    assert_eq!(shown("", "/p/q", ""), "p/ p/q/");
    assert_eq!(shown("", "/p/q", "7"), "p/#7:7 p/q/#7:7");
    assert_eq!(shown("p/@700", "/p/q", "7:8"), "p/@700 p/q/#7:8");
    assert_eq!(shown("x/", "/w", "ghost"), "w/ x/");
    assert_eq!(shown("r/ l->r", "/l/w", ""), "l->r r/ r/w/");
    assert_eq!(shown("r/@711 l->r", "/l", "7"), "l->r r/@711");
    let error = |target: &str, path: &str, user: &str| make(target, path, user, None).err().expect(path).to_string();
    assert_eq!(error("f=f", "/f", ""), "mkdir /f: not a directory");
    assert_eq!(error("", "/w", "app"), "invalid user index: -1");
    let (_, trees) = make("", "/p/q", "", Some(1234)).expect("made");
    assert_eq!((trees.mtime("p"), trees.mtime("p/q")), (1234, 1234));
}
