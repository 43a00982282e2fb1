"""A SageMaker that runs training jobs for real, on this machine, for tests with real boto3 clients.

`python -m sagemaker FOLDER` (from `tests/`) is a moto server with the training half of SageMaker put in front of it:
CreateTrainingJob starts the real sagemaker-training toolkit on the source and the channels in the server's S3.
Tests take the fixture `sagemaker`, which is a `sagemaker.fixture.SageMaker`:

    def test_a_job(sagemaker):
        sagemaker.settings(log_delay=0.0)        # turn knobs: the fields of sagemaker.settings.Settings
        sagemaker.hide("torch")                  # the toolkit imports torch if it can, which takes seconds
        boto3.session.Session().client("sagemaker").create_training_job(**request, RoleArn=sagemaker.role)
        assert sagemaker.ended("job-1")["TrainingJobStatus"] == "Completed"
        assert "loss=0.5" in sagemaker.all_lines("job-1")
        assert sagemaker.actions() == ["CreateTrainingJob"]

Each test starts with an empty account: one role (`role`), one bucket (`bucket`), no request recorded, no fault set.
For the time of the test the variables of `environment` are set (AWS_ENDPOINT_URL, keys, region), so that any client
reaches the server and none reaches AWS. `requests()` and `actions()` tell what clients sent; what jobs, the service
and the test's own `sagemaker.client(...)` send is told apart by its access key, and neither counted nor refused.

As on AWS: a request is checked by botocore's model and answered with ValidationException; names are unique; `/opt/ml`
and PID 1 are the job's own (mount and PID namespaces); SIGTERM reaches PID 1 only, and SIGKILL follows after `grace`;
/opt/ml/checkpoints is restored at start and mirrored to S3 while the job runs; log lines become readable late, and
some after the job's end; an interrupted managed spot job starts again under its name with its checkpoints;
x-amz-expected-bucket-owner is checked on every call to S3. What a job writes into the Python environment
(`pip install`) vanishes with it.

Not as on AWS: Pipe mode, file systems, manifests and instance groups are refused; nothing looks at images or at the
role; jobs share this machine's network, so that only one job of several hosts at a time can have the toolkit's port
7777. Without root there are no namespaces: jobs then run under SAGEMAKER_BASE_DIR, `isolated` is False, nothing is
hidden from them, no view is read-only, and only a command's own words may name /opt/ml (they are translated).

In the process of the tests this package's name hides the SageMaker SDK's: tests of the SDK run it in another process.
"""
