//! A Dockerfile of 5,000 instructions → typed instructions.

use criterion::{Criterion, Throughput};

use builder_core::dockerfile;

pub fn measure(criterion: &mut Criterion) {
    let stage = "FROM busybox:1 AS s0\nARG A=1 B=${A:-x}\nENV C=\"$B y\" D='z'\nRUN --mount=type=cache,target=/c set -e; \\\n    \
        # a comment\n    make -j4 && \\\n    make install\nCOPY --chown=1:2 [\"a b\", \"/c/\"]\nRUN <<EOF\necho a\necho b\nEOF\n\
        LABEL a=b c=\"d e\"\nEXPOSE 80 443/tcp\nHEALTHCHECK --interval=1m CMD [\"true\"]\nCMD [\"/bin/sh\", \"-c\", \"true\"]\n";
    let text: String = (0..500).map(|number| stage.replace("s0", &format!("s{number}"))).collect();
    let mut group = super::group(criterion, "parse");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("5,000 instructions", |bencher| {
        bencher.iter(|| dockerfile::parse(&text).expect("a valid Dockerfile").instructions.len());
    });
    group.finish();
}
