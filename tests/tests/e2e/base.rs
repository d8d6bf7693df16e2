//! What a build gives, and what other tools say of it.

use super::*;

pub const TRIALS: &[Row] = &[
    ("push::digest-is-the-registrys", push),
    ("push::files-beside-the-result", files),
    ("push::skopeo-copies-it", copies),
];

const DOCKERFILE: &str = "FROM BASE\nRUN echo ran > /ran\nCOPY one /one\nENV A=b\nCMD [\"cat\", \"/one\"]\n";

fn push(place: &Place) -> Outcome {
    let project = place.project(DOCKERFILE)?;
    project.write("one", "1")?;
    let name = place.name("push");
    let digest = project.built(&["-t", &name, "--push"])?;
    let inspected = place.skopeo(&["inspect", "--tls-verify=false", &format!("docker://{name}")])?;
    let inspected: Value = serde_json::from_str(&inspected).map_err(|error| error.to_string())?;
    same("digest of the registry", inspected["Digest"].as_str(), Some(digest.as_str()))?;
    same("layers", inspected["Layers"].as_array().map(Vec::len), Some(3))?;
    same("environment", &inspected["Env"], &json!(["PATH=/bin", "A=b"]))?;
    Ok(None)
}

fn files(place: &Place) -> Outcome {
    let project = place.project(DOCKERFILE)?;
    project.write("one", "1")?;
    let name = place.name("files");
    let arguments = ["-t", &name, "--push", "--iidfile", "iid", "--metadata-file", "metadata", "--report", "report"];
    let digest = project.built(&arguments)?;
    let raw = ["inspect", "--tls-verify=false", "--raw", &format!("docker://{name}")].map(str::to_owned);
    let manifest = place.skopeo(&raw.each_ref().map(String::as_str))?;
    let manifest: Value = serde_json::from_str(&manifest).map_err(|error| error.to_string())?;
    let iid = fs::read_to_string(project.path("iid")).map_err(|error| error.to_string())?;
    same("--iidfile", Some(iid.trim()), manifest["config"]["digest"].as_str())?;
    let metadata = read_json(&project.path("metadata"))?;
    same("containerimage.digest", metadata["containerimage.digest"].as_str(), Some(digest.as_str()))?;
    same("containerimage.config.digest", metadata["containerimage.config.digest"].as_str(), Some(iid.trim()))?;
    same("image.name", metadata["image.name"].as_str(), Some(name.as_str()))?;
    let report = read_json(&project.path("report"))?;
    same("report: digest", report["digest"].as_str(), Some(digest.as_str()))?;
    same("report: pushed", &report["pushed"], &json!([name]))?;
    let steps = report["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let states: Vec<_> = steps.iter().map(|step| (step["state"].as_str(), step["cached"].as_bool())).collect();
    same("report: steps", states, vec![(Some("done"), Some(false)); 2])?;
    Ok(None)
}

fn copies(place: &Place) -> Outcome {
    let project = place.project(DOCKERFILE)?;
    project.write("one", "1")?;
    let name = place.name("copies");
    let digest = project.built(&["-t", &name, "--push", "-o", "type=oci,dest=image.tar"])?;
    // skopeo checks every digest and size of what it copies.
    for (from, to) in
        [(format!("docker://{name}"), "oci:a:latest"), ("oci-archive:image.tar".to_owned(), "oci:b:latest")]
    {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--src-tls-verify=false", &from, to]).current_dir(project.dir.path());
        process::output(&mut command, LIMIT)?;
    }
    for layout in ["a", "b"] {
        let index = read_json(&project.path(layout).join("index.json"))?;
        same(layout, index["manifests"][0]["digest"].as_str(), Some(digest.as_str()))?;
    }
    Ok(None)
}
