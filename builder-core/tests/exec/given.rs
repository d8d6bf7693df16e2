//! Contexts that the caller of the library has in memory, or makes while they are read.

use std::io::{self, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use builder_core::cancel::Cancel;
use builder_core::event::Silent;
use builder_core::exec::{self, BuildRequest, ContextSource, DockerfileSource, NoCache, TarContext};
use builder_core::output::Target;
use fixtures::image::gzip;
use fixtures::registry::{Effect, FakeRegistry, Fault};

use super::bench::Built;
use super::{Bench, Case, Outcome};

pub const CASES: &[Case] = &[
    Case { name: "files_in_memory_are_a_context", items: "D-11", run: files },
    Case { name: "a_tar_of_the_caller_is_a_context", items: "D-11", run: tars },
    Case { name: "a_tar_is_asked_for_again_when_a_build_begins_anew", items: "D-11", run: again },
    Case { name: "another_build_leaves_a_fetched_context_alone", items: "D-11", run: beside },
];

fn in_context() -> DockerfileSource {
    DockerfileSource::InContext("Dockerfile".into())
}

fn files(bench: &Bench) -> Outcome {
    let long = format!("{}/name", "directory/".repeat(30));
    let files = [
        (
            "Dockerfile",
            "FROM base:1\nCOPY . /all/\nRUN cat /all/a/b/c && ls /all && cat /all/directory/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/name && stat -c '%a %u %Y' /all/a/b/c",
        ),
        ("a/b/c", "content"),
        ("empty", ""),
        ("hidden", "hidden"),
        (".dockerignore", "hidden\n.dockerignore\nDockerfile\n"),
        (&long, "deep"),
    ];
    let context = TarContext::of_files(files);
    assert_eq!(context, context.clone());
    assert_ne!(context, TarContext::of_files(files));
    let build = |context: &TarContext| {
        bench.build("", |request| {
            request.context = ContextSource::Tar(context.clone());
            request.dockerfile = in_context();
        })
    };
    let built = build(&context);
    assert_eq!(built.ok().images.len(), 1);
    assert_eq!(built.output, ["contenta", "directory", "empty", "deep644 0 0"]);
    // Equal content is the same to the cache, whoever holds it.
    let again = build(&TarContext::of_files(files));
    assert!(again.steps.values().all(|state| state == "CACHED"), "{:?}", again.steps);
    assert_eq!(again.digest(), built.digest());
    Outcome::Passed
}

fn tars(bench: &Bench) -> Outcome {
    bench.file("f", "content");
    let file = bench.path("context.tar");
    let made =
        std::process::Command::new("tar").arg("-C").arg(bench.path("context")).arg("-cf").arg(&file).arg(".").status();
    assert!(made.expect("tar is there").success());
    let plain = std::fs::read(&file).expect("the tar");
    let layers = |built: &Built| built.ok().images[0].layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>();
    let expected = layers(&bench.build("FROM base:1\nCOPY f /\n", |_| {}));
    for tar in [TarContext::in_memory(gzip(&plain)), TarContext::in_memory(plain)] {
        let built = bench.build("FROM base:1\nCOPY f /\n", |request| {
            request.context = ContextSource::Tar(tar);
            request.no_cache = NoCache::All;
        });
        assert_eq!(layers(&built), expected);
    }
    let text = bench.build("", |request| {
        request.context = ContextSource::Tar(TarContext::in_memory(*b"FROM base:1\nRUN echo text\n"));
        request.dockerfile = in_context();
    });
    text.ok();
    assert_eq!(text.output, ["text"]);
    let refused = bench.build("FROM base:1\nCOPY f /\n", |request| {
        let refuse = || Err(io::Error::new(io::ErrorKind::PermissionDenied, "not today"));
        request.context = ContextSource::Tar(TarContext::new("the vault", refuse));
    });
    let told = refused.error();
    assert!(told.contains("the vault") && told.contains("not today"), "{told}");
    Outcome::Passed
}

fn again(bench: &Bench) -> Outcome {
    let registry = FakeRegistry::start();
    let opened = Arc::new(AtomicUsize::new(0));
    let context = {
        let opened = Arc::clone(&opened);
        TarContext::new("the caller", move || {
            opened.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Cursor::new(&b"FROM base:1\nRUN echo ran > /ran\n"[..])) as Box<dyn Read + Send>)
        })
    };
    let build = |outputs: Vec<Target>| {
        bench.build("", |request| {
            request.context = ContextSource::Tar(context.clone());
            request.dockerfile = in_context();
            request.outputs = outputs;
            request.tags = vec![format!("{}/a:1", registry.host()).parse().expect("a name")];
        })
    };
    let first = build(vec![Target::push()]);
    let lost = first.ok().images[0].layers[1].blob.digest;
    registry.fault(Fault::always("", &format!("/v2/a/blobs/{lost}"), Effect::status(404)));
    build(vec![bench.output("type=oci,dest=out,tar=false")]).ok();
    assert_eq!(opened.load(Ordering::Relaxed), 3, "once, and twice for the build that began anew");
    Outcome::Passed
}

fn beside(bench: &Bench) -> Outcome {
    let files = [("Dockerfile", "FROM base:1\nRUN echo begun\nCOPY f /late/\nRUN cat /late/f\n"), ("f", "content")];
    let other = bench.request("FROM scratch\nENV a=b\n");
    let change = |request: &mut BuildRequest| {
        request.context = ContextSource::Tar(TarContext::of_files(files));
        request.dockerfile = in_context();
    };
    let built = bench.build_watched("", change, move |line| {
        if line == "begun" {
            // It opens the work dir, and removes what dead builders left there.
            exec::build(&other, Arc::new(Silent), &Cancel::default()).expect("an empty image");
        }
    });
    built.ok();
    assert_eq!(built.output, ["begun", "content"]);
    Outcome::Passed
}
