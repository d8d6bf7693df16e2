//! Dockerfile text in → steps, configs, history, errors and findings out.

mod refusals;

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::dockerfile::{Dockerfile, parse};
use crate::oci::{DiffId, ImageConfig, Platform, Sha256};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn options() -> PlanOptions {
    PlanOptions { build_platform: Some(Platform::new("linux", "amd64", "")), ..PlanOptions::default() }
}

fn pairs(items: &[(&str, &str)]) -> BTreeMap<String, String> {
    items.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// `base` has one layer and nothing else, `triggers` two ONBUILDs, `arm` another processor.
fn image(request: &ImageRequest) -> Option<BaseImage> {
    let layers = json!({ "type": "layers", "diff_ids": [DiffId(Sha256::of(b"x")).to_string()] });
    let (architecture, config) = match request.name.as_str() {
        "base" | "other" => ("amd64", json!({ "Env": [PATH] })),
        "triggers" => (
            "amd64",
            json!({ "Env": [PATH], "OnBuild": ["COPY --from=other /o /o", "RUN --mount=from=later,target=/l true"] }),
        ),
        "arm" => ("arm64", json!({})),
        _ => return None,
    };
    let config = json!({
        "os": "linux", "architecture": architecture, "config": config, "rootfs": layers,
        "history": [{ "created_by": "base layer" }]
    });
    Some(BaseImage {
        config: ImageConfig::from_json(config.to_string().as_bytes()).expect("an object"),
        pinned: format!("docker.io/library/{}:latest@sha256:0", request.name),
    })
}

fn parsed(text: &str) -> Dockerfile {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Plans with the images above, resolving as often as asked to.
fn plan_with(text: &str, options: &PlanOptions) -> Result<Plan, PlanError> {
    let dockerfile = parsed(text);
    let outline = outline(&dockerfile, options)?;
    let mut bases = Bases::new();
    let mut wanted = outline.images.clone();
    loop {
        for request in wanted {
            let base = image(&request).unwrap_or_else(|| panic!("no image {}", request.name));
            assert!(bases.insert(request, base).is_none(), "asked for twice");
        }
        match lower(&dockerfile, &outline, &bases, options)? {
            Lowered::Plan(plan) => return Ok(*plan),
            Lowered::Needs(more) => wanted = more,
        }
    }
}

fn plan(text: &str) -> Plan {
    plan_with(text, &options()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn target(plan: &Plan) -> &Stage {
    &plan.stages[plan.target.0]
}

fn created_by(plan: &Plan) -> Vec<&str> {
    let mut texts = Vec::new();
    for item in &target(plan).history {
        texts.push(match item {
            PlannedHistory::Inherited(entry) => entry.created_by(),
            PlannedHistory::New { created_by, .. } => created_by,
        });
    }
    texts
}

fn runs(plan: &Plan) -> Vec<&RunAction> {
    let steps = plan.stages.iter().flat_map(|stage| &stage.steps);
    steps.filter_map(|step| if let Action::Run(run) = &step.action { Some(run) } else { None }).collect()
}

fn copies(plan: &Plan) -> Vec<&CopyAction> {
    let steps = plan.stages.iter().flat_map(|stage| &stage.steps);
    steps.filter_map(|step| if let Action::Copy(copy) = &step.action { Some(copy) } else { None }).collect()
}

/// The body of a single stage on `base`.
#[track_caller]
fn check_history(body: &str, expected: &[&str]) {
    let plan = plan(&format!("FROM base\n{body}"));
    assert_eq!(created_by(&plan)[1..], *expected, "{body}");
}

#[track_caller]
fn check_config(body: &str, field: &str, expected: Value) {
    let plan = plan(&format!("FROM base\n{body}"));
    let found = target(&plan).config.field(field).cloned().unwrap_or(Value::Null);
    assert_eq!(found, expected, "{field} of {body}");
}

#[test]
fn golden_cases_of_the_checklist() {
    // G-06, G-07, G-08, G-09
    check_history("ARG x=1\nENV A=a\\ b B=\"c d\" C='e $x'", &["ARG x=1", "ENV A=a b B=c d C=e $x"]);
    check_config("ENV K v1   \"v2\"", "Env", json!([PATH, "K=v1   v2"]));
    check_config("ENV a=1\nENV a=2 b=$a", "Env", json!([PATH, "a=2", "b=1"]));
    check_history("ARG a=1 b=$a", &["ARG a=1 b=1"]);
    // G-10, G-11, G-12
    assert_eq!(runs(&plan("FROM base\nRUN echo a \\\n# note\n  b"))[0].argv, ["/bin/sh", "-c", "echo a   b"]);
    check_config("CMD [\"a\", 'b']", "Cmd", json!(["/bin/sh", "-c", "[\"a\", 'b']"]));
    check_history("CMD []", &["CMD []"]);
    // G-14
    let text = "FROM scratch\nARG V=1\nENV E=$V\nCOPY --chown=1:2 a b /d/\nWORKDIR w\nCMD [\"x\",\"y\"]";
    let made = plan(text);
    assert_eq!(
        created_by(&made),
        ["ARG V=1", "ENV E=1", "COPY --chown=1:2 a b /d/ # buildkit", "WORKDIR /w", "CMD [\"x\" \"y\"]"]
    );
    assert_eq!(target(&made).config.list("Env"), [PATH, "E=1"]);
    assert_eq!((target(&made).config.text("WorkingDir"), target(&made).steps.len()), ("/w", 2));
    // G-15, G-16
    check_history("ARG V=1\nENV V=2\nRUN true", &["ARG V=1", "ENV V=2", "RUN |1 V=2 /bin/sh -c true # buildkit"]);
    let made = plan("FROM base\nENV V=2\nARG V=1\nRUN true");
    assert_eq!(runs(&made)[0].env.last(), Some(&("V".to_owned(), "1".to_owned())));
    assert_eq!(target(&made).config.list("Env"), [PATH, "V=2"]);
    // G-28, G-30, G-32, G-33
    check_history("EXPOSE 8001-8002/UDP 53", &["EXPOSE [53/tcp 8001/udp 8002/udp]"]);
    check_history(
        "HEALTHCHECK --interval=1m CMD [\"a\"]",
        &["HEALTHCHECK {Test:[CMD a] Interval:1m0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}"],
    );
    check_history("EXPOSE 80 80/tcp", &["EXPOSE [80/tcp 80/tcp]"]);
    check_history("WORKDIR /a/../b/\nWORKDIR c/../d/", &["WORKDIR /a/../b/", "WORKDIR /b/d"]);
    // G-34
    let given = PlanOptions { build_args: pairs(&[("B", "9")]), ..options() };
    let made = plan_with("FROM base\nARG A B=2 C=\nRUN true", &given).expect("valid");
    assert_eq!(created_by(&made)[1..], ["ARG A B=9 C=", "RUN |3 A= B=9 C= /bin/sh -c true # buildkit"]);
    assert_eq!(runs(&made)[0].env[1..], [("B", "9"), ("C", "")].map(|(k, v)| (k.to_owned(), v.to_owned())));
    // G-42
    check_history("LABEL a=\"x y\" b=$q 'c d'=1", &["LABEL a=x y b= c d=1"]);
}

#[test]
fn parents_pass_on_commands_and_arguments() {
    // G-13
    let cmd = |body: &str| target(&plan(&format!("FROM base AS p\nCMD [\"p\"]\nFROM p\n{body}"))).config.list("Cmd");
    assert!(cmd("ENTRYPOINT [\"e\"]").is_empty());
    assert_eq!(cmd("CMD [\"c\"]\nENTRYPOINT [\"e\"]"), ["c"]);
    assert_eq!(cmd("ENTRYPOINT [\"e\"]\nCMD [\"c\"]"), ["c"]);
    //
    let made = plan("FROM base AS p\nENV A=env\nARG A=arg\nFROM p\nRUN true");
    assert_eq!(runs(&made)[0].env.last(), Some(&("A".to_owned(), "env".to_owned())));
    //
    let made = plan("FROM base AS p\nARG A=1\nFROM base\nCOPY --from=p / /x\nRUN true");
    assert!(runs(&made)[0].args.is_empty());
}

#[test]
fn heredocs_of_run() {
    let argv = |body: &str| runs(&plan(&format!("FROM base\n{body}\n")))[0].argv.clone();
    assert_eq!(argv("RUN <<EOF\necho a\nEOF"), ["/bin/sh", "-c", "echo a\n"]);
    assert_eq!(argv("RUN <<-'EOF'\n\techo $a\n\tEOF"), ["/bin/sh", "-c", "echo $a\n"]);
    assert_eq!(argv("RUN <<EOF cat > /f\nhi\nEOF"), ["/bin/sh", "-c", "<<EOF cat > /f\nhi\nEOF"]);
    assert_eq!(argv("RUN cat <<A <<B\na\nA\nb\nB"), ["/bin/sh", "-c", "cat <<A <<B\na\nA\nb\nB"]);
    let made = plan("FROM base\nRUN <<EOF\n#!/usr/bin/env python\nprint()\nEOF\n");
    assert_eq!(runs(&made)[0].argv, ["/bin/sh", "-c", "/dev/pipes/EOF"]);
    let script = Some(("EOF".to_owned(), "#!/usr/bin/env python\nprint()\n".to_owned()));
    assert_eq!(runs(&made)[0].script, script);
    assert_eq!(made.stages[0].steps[0].title, "[2/2] RUN <<EOF (#!/usr/bin/env python...)");
}

#[test]
fn titles() {
    let titles = |text: &str| -> Vec<String> {
        let made = plan(text);
        let steps = made.stages.iter().flat_map(|stage| stage.steps.iter().map(|step| step.title.clone()));
        made.stages.iter().filter_map(|stage| stage.from_title.clone()).chain(steps).collect()
    };
    assert_eq!(
        titles("FROM base\nENV D=/d\nrun echo \"$D\" $other 'x'\nCOPY a \"b\" $D/\nWORKDIR $D"),
        [
            "[1/4] FROM docker.io/library/base:latest@sha256:0",
            "[2/4] RUN echo \"/d\" $other 'x'",
            "[3/4] COPY a b /d/",
            "[4/4] WORKDIR /d",
        ]
    );
    assert_eq!(
        titles("FROM scratch AS Made\nCOPY a /\nFROM base\nCOPY --from=made / /\n"),
        [
            "[stage-1 1/2] FROM docker.io/library/base:latest@sha256:0",
            "[made 1/1] COPY a /",
            "[stage-1 2/2] COPY --from=made / /",
        ]
    );
    let many: String = (0..10).map(|n| format!("WORKDIR /{n}\n")).collect();
    let ten = titles(&format!("FROM scratch\n{many}"));
    assert_eq!((ten[0].as_str(), ten[9].as_str()), ("[ 1/10] WORKDIR /0", "[10/10] WORKDIR /9"));
    let multi = PlanOptions { multi_platform: true, ..options() };
    let made = plan_with("FROM base\nRUN x", &multi).expect("valid");
    assert_eq!(made.stages[0].steps[0].title, "[linux/amd64 2/2] RUN x");
}

#[test]
fn triggers_ask_for_more_images_and_stages() {
    let text = "FROM base AS later\nFROM base AS unused\nFROM triggers\nRUN own";
    let dockerfile = parsed(text);
    let first = outline(&dockerfile, &options()).expect("valid");
    assert_eq!(first.images.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["triggers"]);
    let resolve = |names: &[&str]| -> Bases {
        let request = |name: &&str| ImageRequest { name: (*name).to_owned(), platform: first.platform.clone() };
        names.iter().map(request).map(|request| (request.clone(), image(&request).expect("known"))).collect()
    };
    let Ok(Lowered::Needs(more)) = lower(&dockerfile, &first, &resolve(&["triggers"]), &options()) else {
        panic!("nothing is needed")
    };
    assert_eq!(more.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["base", "other"]);
    let made = plan(text);
    assert_eq!(made.stages.len(), 2);
    assert_eq!(
        made.dropped,
        [DroppedStage {
            name: "unused".to_owned(),
            lines: parsed(text).source.lines(&parsed(text).instructions[1].span)
        }]
    );
    let titles: Vec<&str> = target(&made).steps.iter().map(|step| step.title.as_str()).collect();
    assert_eq!(
        titles,
        [
            "[stage-2 2/4] ONBUILD COPY --from=other /o /o",
            "[stage-2 3/4] ONBUILD RUN --mount=from=later,target=/l true",
            "[stage-2 4/4] RUN own",
        ]
    );
    assert_eq!(target(&made).steps[0].lines.first, 3, "triggers stand at FROM");
    assert!(target(&made).config.field("OnBuild").is_none());
}

#[test]
fn mounts() {
    let made = plan(concat!(
        "FROM base AS s\nFROM base\nWORKDIR /w\nARG id=x\n",
        "RUN --mount=target=m --mount=type=bind,from=s,source=a/..,target=/s,rw ",
        "--mount=type=cache,target=c --mount=type=cache,target=/d,id=$id,uid=7 --mount=type=tmpfs,target=/t,size=1k ",
        "--mount=type=secret,id=k --mount=type=secret,id=e,env=E --mount=type=secret,target=/f/n,required ",
        "--mount=type=ssh --mount=type=ssh,id=o,target=/a true",
    ));
    let found: Vec<String> = runs(&made)[0].mounts.iter().map(|mount| format!("{mount:?}")).collect();
    let expected = [
        "Mount { target: \"/w/m\", readonly: true, kind: Bind { from: Context, source: \"/\" } }",
        "Mount { target: \"/s\", readonly: false, kind: Bind { from: Stage(StageId(0)), source: \"/\" } }",
        "Mount { target: \"/w/c\", readonly: false, kind: Cache { id: \"/c\", sharing: Shared, from: None, source: \"/\", \
         mode: None, uid: None, gid: None } }",
        "Mount { target: \"/d\", readonly: false, kind: Cache { id: \"/x\", sharing: Shared, from: None, source: \"/\", \
         mode: None, uid: Some(7), gid: None } }",
        "Mount { target: \"/t\", readonly: false, kind: Tmpfs { size: Some(1024) } }",
        "Mount { target: \"/run/secrets/k\", readonly: true, kind: Secret { id: \"k\", file: true, env: None, \
         required: false, mode: 256, uid: 0, gid: 0 } }",
        "Mount { target: \"\", readonly: true, kind: Secret { id: \"e\", file: false, env: Some(\"E\"), required: false, \
         mode: 256, uid: 0, gid: 0 } }",
        "Mount { target: \"/f/n\", readonly: true, kind: Secret { id: \"n\", file: true, env: None, required: true, \
         mode: 256, uid: 0, gid: 0 } }",
        "Mount { target: \"/run/buildkit/ssh_agent.0\", readonly: true, kind: Ssh { id: \"default\", required: false, \
         mode: 384, uid: 0, gid: 0 } }",
        "Mount { target: \"/a\", readonly: true, kind: Ssh { id: \"o\", required: false, mode: 384, uid: 0, gid: 0 } }",
    ];
    assert_eq!(found, expected);
    // G-40
    let made = plan("FROM base\nRUN --mount=type=cache,target=c --mount=type=cache,target=/d true");
    let ids = runs(&made)[0].mounts.iter().map(|mount| match &mount.kind {
        MountKind::Cache { id, .. } => id.as_str(),
        _ => "",
    });
    assert_eq!(ids.collect::<Vec<_>>(), ["/c", "//d"]);
}

#[test]
fn copies_are_resolved() {
    let made = plan("FROM base AS s\nFROM scratch\nARG f='a b'\nWORKDIR /w\nCOPY --from=S --link $f ./\n");
    let copy = copies(&made)[0];
    assert_eq!(copy.from, FileSource::Stage(StageId(0)));
    assert_eq!(copy.sources, [CopySource::Path("a b".to_owned())]);
    assert_eq!((copy.destination.as_str(), copy.link), ("/w/", true));
    let made = plan("FROM scratch\nCOPY --link --chmod=0755 a /\nCOPY --chown= --chmod=u+x a /");
    assert_eq!((copies(&made)[0].link, &copies(&made)[0].chmod), (false, &Some(Chmod::Octal(0o755))));
    assert_eq!((&copies(&made)[1].chown, &copies(&made)[1].chmod), (&None, &Some(Chmod::Symbolic("u+x".to_owned()))));
    // G-19
    let made = plan("FROM scratch\nENV x=foo\nCOPY <<A <<\"B\" p /d/\n$x\nA\n$x\nB\n");
    let heredoc = |name: &str, body: &str| CopySource::Heredoc { name: name.to_owned(), body: body.to_owned() };
    assert_eq!(
        copies(&made)[0].sources,
        [CopySource::Path("p".to_owned()), heredoc("A", "foo\n"), heredoc("B", "$x\n")]
    );
    assert_eq!(created_by(&made)[1], "COPY p <<A <<B /d/ # buildkit");
    let made = plan("FROM scratch\nADD https://example.com/x.git https://example.com/f git@host:p /d/");
    let kinds = ["https://example.com/x.git", "https://example.com/f", "git@host:p"].map(str::to_owned);
    let [git, url, scp] = kinds;
    assert_eq!(copies(&made)[0].sources, [CopySource::Git(git), CopySource::Url(url), CopySource::Git(scp)]);
    // C-54
    let digest = format!("sha256:{}", "0".repeat(64));
    let made = plan(&format!("FROM scratch\nADD --checksum={digest} https://example.com/f /"));
    assert_eq!(copies(&made)[0].checksum.as_deref(), Some(digest.as_str()));
}

#[test]
fn named_contexts_take_the_place_of_stages_and_images() {
    let contexts = [
        ("dep", NamedContext::Directory("/d".into())),
        ("base", NamedContext::Image("docker-image://other".to_owned())),
        ("a:latest", NamedContext::Image("b".to_owned())),
        ("b", NamedContext::Image("a".to_owned())),
        ("none", NamedContext::Image("docker-image://scratch".to_owned())),
    ];
    let named_contexts = contexts.map(|(name, context)| (name.to_owned(), context)).into();
    let with = PlanOptions { named_contexts, ..options() };
    let text = "FROM nowhere AS dep\nRUN exit 1\nFROM base:latest\nCOPY --from=dep a /\nCOPY --from=none a /\nFROM dep";
    let made = plan_with(text, &PlanOptions { target: Some("dep".to_owned()), ..with.clone() }).expect("valid");
    assert_eq!(target(&made).base, Base::Context("dep".to_owned()));
    assert!(target(&made).steps.is_empty());
    let made = plan_with(&text.replace("\nFROM dep", ""), &with).expect("valid");
    assert!(matches!(&target(&made).base, Base::Image(request) if request.name == "other"));
    assert_eq!(copies(&made)[0].from, FileSource::NamedContext("dep".to_owned()));
    assert_eq!(copies(&made)[1].from, FileSource::Scratch);
    let error = plan_with("FROM a", &with).expect_err("a loop");
    assert_eq!(error.to_string(), "context recursion detected on \"a\"");
}

#[test]
fn platforms() {
    let arm = PlanOptions { platform: Some(Platform::new("linux", "arm64", "")), ..options() };
    let text = "FROM --platform=$BUILDPLATFORM base AS b\nARG TARGETARCH\nRUN x\nFROM arm\nCOPY --from=b / /";
    let made = plan_with(text, &arm).expect("valid");
    assert_eq!(made.platform, Platform::new("linux", "arm64", ""));
    assert_eq!(made.stages[0].platform, Platform::new("linux", "amd64", ""));
    assert_eq!(runs(&made)[0].args, pairs(&[("TARGETARCH", "arm64")]));
    // F-09, F-10: what was asked for is what the image says.
    let made = plan_with("FROM --platform=linux/amd64 base", &arm).expect("valid");
    assert_eq!(made.platform.to_string(), "linux/arm64");
    // Not asked for: the image's own.
    assert_eq!(plan("FROM arm").platform.to_string(), "linux/arm64");
}

#[test]
fn epochs() {
    let made = plan("ARG SOURCE_DATE_EPOCH=100\nFROM base\nARG SOURCE_DATE_EPOCH\nWORKDIR /w\nRUN x");
    assert_eq!(made.source_date_epoch, Some(100));
    assert_eq!(runs(&made)[0].args, pairs(&[("SOURCE_DATE_EPOCH", "100")]));
    let given = PlanOptions { source_date_epoch: Some(7), ..options() };
    let made = plan_with("ARG SOURCE_DATE_EPOCH=100\nFROM base\nARG SOURCE_DATE_EPOCH\nRUN x", &given).expect("valid");
    assert_eq!((made.source_date_epoch, runs(&made)[0].args["SOURCE_DATE_EPOCH"].as_str()), (Some(7), "7"));
    let reset = PlanOptions { build_args: pairs(&[("SOURCE_DATE_EPOCH", "")]), ..options() };
    let made = plan_with("ARG SOURCE_DATE_EPOCH=100\nFROM base", &reset).expect("valid");
    assert_eq!(made.source_date_epoch, None);
}

#[test]
fn numbered_stages_go_on_with_images() {
    // S-02
    let made = plan("FROM base AS a\nFROM scratch\nCOPY --from=other x /\nCOPY --from=2 y /\nCOPY --from=0 z /");
    let other = ImageRequest { name: "other".to_owned(), platform: Platform::new("linux", "amd64", "") };
    let from: Vec<&FileSource> = copies(&made).iter().map(|copy| &copy.from).collect();
    assert_eq!(from, [&FileSource::Image(other.clone()), &FileSource::Image(other), &FileSource::Stage(StageId(0))]);
}

#[test]
fn a_plan_can_be_read() {
    let made = plan(
        "FROM base AS a\nRUN x\nFROM scratch AS out\nCOPY --from=a /f <<E /\nhi\nE\nWORKDIR /w\nFROM base AS no\nFROM out",
    );
    assert_eq!(
        made.render(),
        "platform linux/amd64\n\n\
         stage a (line 1)\n  from docker.io/library/base:latest@sha256:0\n  [a 2/2] RUN x (line 2)\n    in / as root\n  \
         1 layers, 0 changes of the configuration only\n\n\
         stage out (line 3)\n  from scratch\n  [out 1/2] COPY --from=a /f <<E / (lines 4-6)\n    \
         /f, <<E (3 bytes) of stage a to /\n  [out 2/2] WORKDIR /w (line 7)\n    makes /w for root if it is missing\n  \
         2 layers, 0 changes of the configuration only\n\n\
         stage stage-3 (line 9), the target\n  from stage out\n  0 layers, 0 changes of the configuration only\n\n\
         not built: no (line 8)\n"
    );
    let value = serde_json::to_value(&made).expect("texts as keys");
    assert_eq!(value["schema"], 1);
    assert_eq!(value["stages"][1]["steps"][0]["copy"]["destination"], "/");
    assert_eq!(value["stages"][0]["steps"][0]["run"]["argv"], json!(["/bin/sh", "-c", "x"]));
}

fn instruction() -> impl Strategy<Value = String> {
    let word =
        prop::sample::select(vec!["$A", "${B:-x}", "/a/../b", "x", "'q $A'", "80/udp", "--", "0", "a", ".", "${C?}"]);
    let keyword = prop::sample::select(vec![
        "FROM base AS",
        "FROM",
        "ARG",
        "ENV A=",
        "ENV",
        "LABEL k=",
        "RUN",
        "CMD",
        "ENTRYPOINT",
        "COPY --from=a",
        "COPY .",
        "ADD --chmod=7",
        "WORKDIR",
        "USER",
        "EXPOSE",
        "VOLUME",
        "STOPSIGNAL",
        "ONBUILD RUN",
        "ONBUILD COPY --from=x a",
        "RUN --mount=type=cache,target=",
        "RUN --mount=from=a,target=",
        "MAINTAINER",
    ]);
    (keyword, word).prop_map(|(keyword, word)| format!("{keyword} {word}"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is parsed is planned or refused, the same way each time, and layers and history agree.
    #[test]
    fn any_dockerfile_is_planned_or_refused(lines in prop::collection::vec(instruction(), 0..12)) {
        let text = format!("ARG A=1\nFROM base AS a\n{}\n", lines.join("\n"));
        let Ok(dockerfile) = parse(&text) else { return Ok(()) };
        let Ok(outline) = outline(&dockerfile, &options()) else { return Ok(()) };
        let mut bases = Bases::new();
        let mut wanted = outline.images.clone();
        let planned = loop {
            for mut request in wanted {
                let key = request.clone();
                request.name = "base".to_owned();
                bases.insert(key, image(&request).expect("known"));
            }
            match lower(&dockerfile, &outline, &bases, &options()) {
                Ok(Lowered::Plan(plan)) => break Ok(plan),
                Ok(Lowered::Needs(more)) => wanted = more,
                Err(error) => break Err(error),
            }
        };
        match (planned, lower(&dockerfile, &outline, &bases, &options())) {
            (Ok(first), Ok(Lowered::Plan(second))) => {
                prop_assert_eq!(&first, &second);
                for stage in &first.stages {
                    let own = stage.history.iter().filter(
                        |item| matches!(item, PlannedHistory::New { step: Some((id, _)), .. } if *id == stage.id),
                    );
                    prop_assert_eq!(own.count(), stage.steps.len());
                }
            }
            (Err(first), Err(second)) => prop_assert_eq!(first, second),
            (first, second) => prop_assert!(false, "{:?} then {:?}", first, second),
        }
        _ = check(&dockerfile, &options(), &Bases::new());
    }
}

#[test]
fn an_epoch_that_was_looked_up() {
    let text = "FROM base\nARG SOURCE_DATE_EPOCH\nRUN x";
    let build_args = pairs(&[("SOURCE_DATE_EPOCH", "context")]);
    let found = |epoch_of_source| PlanOptions { build_args: build_args.clone(), epoch_of_source, ..options() };
    let made = plan_with(text, &found(Some(Some(9)))).expect("valid");
    assert_eq!((made.source_date_epoch, runs(&made)[0].args.clone()), (Some(9), pairs(&[("SOURCE_DATE_EPOCH", "9")])));
    // What has no time sets none, and the name is no value.
    let made = plan_with(text, &found(Some(None))).expect("valid");
    assert_eq!((made.source_date_epoch, runs(&made)[0].args.get("SOURCE_DATE_EPOCH")), (None, None));
}
