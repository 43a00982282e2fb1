"""A SageMaker that runs training jobs for real, on this machine, for tests with real boto3 clients.

`python -m sagemaker PORT FOLDER` (from `tests/`) is a moto server with the training half of SageMaker put in front of it:
CreateTrainingJob starts the real sagemaker-training toolkit on the source and the channels that lie in the server's S3.
Tests take the fixture `sagemaker` of `sagemaker.fixture`:

    def test_a_job(sagemaker):
        sagemaker.settings(log_delay=0.0)                    # knobs: the fields of sagemaker.settings.Settings
        sagemaker.client("sagemaker").create_training_job(**request, RoleArn=sagemaker.role)
        assert sagemaker.ended("job-1")["TrainingJobStatus"] == "Completed"
        assert [request.action for request in sagemaker.requests()] == ["CreateTrainingJob"]

Each test starts with an empty account: one role (`role`), one bucket (`bucket`), no request recorded, no fault set. For the
time of the test the variables of `environment` are set (AWS_ENDPOINT_URL, keys, region), so that any client reaches the
server and none reaches AWS. `requests()` holds what clients sent; what jobs and the service itself send is told apart
by its access key (`requests("job")`, `requests("service")`).

What is as on AWS: the request is validated by botocore's model and answered with ValidationException; names are unique;
`/opt/ml` and PID 1 belong to the job (mount and PID namespaces), SIGTERM reaches PID 1 only and SIGKILL follows after
`grace`; /opt/ml/checkpoints is restored at start and mirrored to S3 while the job runs; log lines become readable late, and
after the job's end; a managed spot job that is interrupted starts again under its name with its checkpoints; x-amz-expected-bucket-owner
is checked on every call to S3. Writes of a job into the Python environment (`pip install`) vanish with the job.

What is not: Pipe mode, file systems, manifests and instance groups are refused; images are not looked at; jobs share this
machine's network, so that only one job of several hosts can use the toolkit's port 7777 at a time. Without root there are
no namespaces: jobs then run under SAGEMAKER_BASE_DIR, `isolated` is False, and what names /opt/ml itself does not work.

In the process of the tests the package's name hides the SageMaker SDK's: tests of the SDK run it in a process of its own.
"""
