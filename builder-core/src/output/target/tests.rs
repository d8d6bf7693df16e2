use super::*;
use crate::hint::Hint as _;

fn read(text: &str) -> Result<Target, TargetError> {
    Target::parse(text, Path::new("/here"))
}

#[track_caller]
fn check(text: &str, expected: Exporter) {
    assert_eq!(read(text).map(|target| target.exporter), Ok(expected), "{text}");
}

#[track_caller]
fn check_error(text: &str, message: &str, hint: &str) {
    let error = read(text).expect_err(text);
    assert_eq!(error.kind.to_string(), message, "{text}");
    assert_eq!(error.hint().unwrap_or_default(), hint, "{text}");
}

fn local(directory: &str) -> Exporter {
    Exporter::Local { directory: directory.into(), platform_split: None, delete: false }
}

fn file(path: &str) -> Destination {
    Destination::File(path.into())
}

#[test]
fn outputs_are_read() {
    check("out", local("/here/out"));
    check("/abs/a=b", local("/abs/a=b"));
    check("-", Exporter::Tar { to: Destination::Stdout, platform_split: None });
    check("type=local,dest=/x", local("/x"));
    check(
        "type=local,dest=x,mode=delete,platform-split=true",
        Exporter::Local { directory: "/here/x".into(), platform_split: Some(true), delete: true },
    );
    check("type=tar,dest=-", Exporter::Tar { to: Destination::Stdout, platform_split: None });
    check("type=tar", Exporter::Tar { to: Destination::Stdout, platform_split: None });
    check("type=oci", Exporter::OciArchive(Destination::Stdout));
    check("type=oci,dest=a.tar", Exporter::OciArchive(file("/here/a.tar")));
    check("dest=a,type=oci,tar=false", Exporter::OciDirectory("/here/a".into()));
    check("type=docker,\"dest=a,b \"\"c\"\"\"", Exporter::DockerArchive(file("/here/a,b \"c\"")));
    check("type=registry", Exporter::Registry { by_digest: false, insecure: false });
    check("type=image,push", Exporter::Registry { by_digest: false, insecure: false });
    check(
        "type=image,push=1,push-by-digest=true,registry.insecure=true",
        Exporter::Registry { by_digest: true, insecure: true },
    );
    check("type=cacheonly", Exporter::CacheOnly);
    assert!(read("-").expect("valid").is_stdout());
    assert!(!read("type=oci,dest=x").expect("valid").is_stdout());
}

#[test]
fn options_are_read() {
    let target = read(
        "type=image,push=true,\"name=h:5000/a:1,b\",compression=zstd,compression-level=7,force-compression,\
         oci-mediatypes=false,rewrite-timestamp=true,source-date-epoch=12,annotation.a=b=c,\
         annotation-index-descriptor[linux/arm64].k=v",
    )
    .expect("valid");
    assert_eq!(target.names, ["h:5000/a:1".parse().expect("valid"), "b".parse().expect("valid")]);
    assert_eq!(target.compression, Some(Compression::Zstd { level: 7 }));
    assert!(target.force_compression && target.rewrite_timestamp && target.wants_docker_media_types());
    assert_eq!(target.source_date_epoch, Some(Some(12)));
    let [first, second] = target.annotations.as_slice() else { panic!("{:?}", target.annotations) };
    assert_eq!(
        (first.level, &first.platform, first.key.as_str(), first.value.as_str()),
        (AnnotationLevel::Manifest, &None, "a", "b=c")
    );
    assert_eq!(second.level, AnnotationLevel::IndexDescriptor);
    assert_eq!(second.platform.as_ref().map(ToString::to_string), Some("linux/arm64".to_owned()));
    for (text, expected) in [
        ("", None),
        (",compression=gzip", Some(Compression::DEFAULT)),
        (",compression-level=9", Some(Compression::Gzip { level: 9 })),
        (",compression=uncompressed", Some(Compression::None)),
        (",compression=zstd", Some(Compression::DEFAULT_ZSTD)),
    ] {
        assert_eq!(read(&format!("type=registry{text}")).expect("valid").compression, expected, "{text}");
    }
    assert_eq!(read("type=tar,dest=x,source-date-epoch=").expect("valid").source_date_epoch, Some(None));
}

#[test]
fn mistakes_are_named() {
    let write = "write a directory, `-`, or type=registry|oci|docker|tar|local,dest=…";
    check_error("", "it is empty", write);
    check_error("dest=x,push=true", "type=… is missing", write);
    check_error("type=ocy,dest=x", "there is no type `ocy`", "did you mean `oci`?");
    let all = "the types are registry, image, oci, docker, tar, local, cacheonly";
    check_error("type=kubernetes", "there is no type `kubernetes`", all);
    check_error("type=oci,dst=x", "type=oci has no key `dst`", "did you mean `dest`?");
    check_error("type=local,dest=x,push=true", "type=local has no key `push`", "");
    check_error("type=docker", "type=docker needs dest=…", "dest=- is standard output");
    check_error("type=oci,tar=false", "type=oci needs dest=…", "");
    check_error("type=local", "type=local needs dest=…", "");
    check_error("type=oci,dest=-,tar=false", "type=oci cannot go to standard output", "");
    check_error("type=local,dest=-", "type=local cannot go to standard output", "");
    check_error(
        "type=image,name=x",
        "there is no daemon that would keep the image",
        "add push=true, or write type=oci,dest=FILE or type=docker,dest=FILE",
    );
    check_error("type=registry,push=false", "type=registry conflicts with push=false", "");
    let tagged = "can't push tagged ref h:5000/a:1 by digest";
    check_error("type=registry,push-by-digest,name=h:5000/a:1", tagged, "");
    check_error("type=registry,push=maybe", "push=maybe is not true or false", "");
    check_error("type=registry,name=A", "name=A is not an image reference", "");
    let digest = "a".repeat(64);
    let named = format!("h/a@sha256:{digest}");
    check_error(&format!("type=registry,name={named}"), &format!("name={named} is not a name without a digest"), "");
    check_error("type=registry,compression=xz", "compression=xz is not gzip, zstd or uncompressed", "");
    check_error("type=registry,compression-level=10", "compression-level=10 is not a level of gzip, 0 to 9", "");
    check_error("type=oci,dest=a,dest=b", "`dest` is given twice", "");
    check_error("type=oci,\"dest=a", "a quote is not closed or stands within a value", "");
    assert!(matches!(
        read("type=registry,annotation-indx.a=b").expect_err("wrong").kind,
        TargetErrorKind::BadAnnotation(_)
    ));
    assert!(matches!(
        read("type=registry,compression=estargz").expect_err("wrong").kind,
        TargetErrorKind::Unsupported { .. }
    ));
}

#[test]
fn beside_push_images_are_pushed() {
    let read = |text: &str| Target::parse_beside_push(text, Path::new("/here"));
    for text in
        ["type=image,compression=zstd", "type=image,push=false,compression=zstd", "type=registry,compression=zstd"]
    {
        let target = read(text).expect(text);
        assert_eq!(target.exporter, Exporter::Registry { by_digest: false, insecure: false }, "{text}");
        assert_eq!(target.compression, Some(Compression::DEFAULT_ZSTD), "{text}");
    }
    assert_eq!(read("out").expect("a directory").exporter, local("/here/out"));
}

#[test]
fn what_stands_in_the_way_is_known_before() {
    let directory = tempfile::tempdir().expect("a directory");
    let (there, file) = (directory.path().join("there"), directory.path().join("file"));
    std::fs::create_dir(&there).expect("a directory");
    std::fs::write(&file, "").expect("a file");
    let check = |form: &str, path: &Path| {
        let target = read(&format!("{form},dest={}", path.display())).expect(form);
        target.check_place().map_err(|error| error.to_string())
    };
    for form in ["type=oci", "type=docker", "type=tar"] {
        assert!(check(form, &there).expect_err(form).contains("it is a directory"), "{form}");
        assert_eq!(check(form, &file), Ok(()));
        assert_eq!(check(form, &directory.path().join("new")), Ok(()));
    }
    for form in ["type=oci,tar=false", "type=local"] {
        assert!(check(form, &file).expect_err(form).contains("it is no directory"), "{form}");
        assert_eq!(check(form, &there), Ok(()));
        assert_eq!(check(form, &directory.path().join("new")), Ok(()));
    }
}
