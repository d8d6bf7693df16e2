//! What a second build does not do again.

use super::*;

pub const TRIALS: &[Row] = &[
    ("cache::second-build-does-nothing", second),
    ("cache::a-changed-file-is-named", changed),
    ("cache::survives-kill", killed),
];

const DOCKERFILE: &str = "FROM BASE\nRUN echo ran > /ran\nCOPY one /one\nRUN cat /one > /copied\nCOPY two /two\n";

fn prepared(place: &Place) -> Result<Project<'_>, String> {
    let project = place.project(DOCKERFILE)?;
    project.write("one", "1")?;
    project.write("two", "2")?;
    Ok(project)
}

/// How many lines of stderr end with `CACHED`.
fn cached(ended: &Ended) -> usize {
    String::from_utf8_lossy(&ended.stderr).lines().filter(|line| line.ends_with("CACHED")).count()
}

fn second(place: &Place) -> Outcome {
    let project = prepared(place)?;
    let name = place.name("second");
    let first = project.built(&["-t", &name, "--push"])?;
    let again = expect(project.build(&["-t", &name, "--push"])?, 0, &[])?;
    same("digest", again.result(), first)?;
    same("cached steps", cached(&again), 4)?;
    Ok(None)
}

fn changed(place: &Place) -> Outcome {
    let project = prepared(place)?;
    let first = project.built(&[])?;
    project.write("two", "changed")?;
    let last = expect(project.build(&[])?, 0, &["not cached: file /two changed"])?;
    same("cached steps", cached(&last), 3)?;
    if last.result() == first {
        return Err("another file gives the same image".to_owned());
    }
    project.write("one", "changed")?;
    same("cached steps", cached(&expect(project.build(&[])?, 0, &["not cached: file /one changed"])?), 1)?;
    project.write("one", "1")?;
    project.write("two", "2")?;
    same("digest of what was there before", project.built(&[])?, first)?;
    Ok(None)
}

fn killed(place: &Place) -> Outcome {
    let dockerfile = "FROM BASE\nRUN echo kept > /kept\nRUN --mount=type=bind,target=/context \
                      echo begun > /begun; test -e /context/quick || sleep 1000\n";
    let project = place.project(dockerfile)?;
    let mut child = faults::started(&project)?;
    child.kill().map_err(|error| error.to_string())?;
    child.wait().map_err(|error| error.to_string())?;
    project.write("quick", "")?;
    let ended = expect(project.build(&[])?, 0, &[])?;
    same("cached steps", cached(&ended), 1)?;
    wait("the end of the killed build's RUN", || faults::left_of(&project).is_empty())?;
    Ok(None)
}
