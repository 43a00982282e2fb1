"""Words of the SageMaker SDK's estimators and of its ModelTrainer, and what `launch` calls the same thing.

Whoever moves an old script over meets each of them once; the answer is the new word, never a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from smkit.errors import did_you_mean

_NEW_WORDS = {
    "base_job_name": "name, or nothing: a launch makes a name of the script's and the time",
    "checkpoint_config": "checkpoint_uri",
    "checkpoint_local_path": "nothing: checkpoints are in /opt/ml/checkpoints",
    "checkpoint_s3_uri": "checkpoint_uri",
    "code_location": "bucket",
    "compute": "instance_type, instance_count, spot and keep_alive_minutes",
    "container_log_level": "nothing: the toolkit logs at INFO; the script sets its own level",
    "debugger_hook_config": "request={'DebugHookConfig': {...}}; launch itself sets none",
    "dependencies": "source_dir: put the folders in it, or a folder above it all",
    "disable_output_compression": "request={'OutputDataConfig': {'CompressionType': 'NONE'}}",
    "disable_profiler": "request={'ProfilerConfig': {'DisableProfiler': True}}",
    "distribution": "nothing: more than one GPU or host turns torchrun on; processes_per_host sets another number",
    "distributions": "nothing: more than one GPU or host turns torchrun on; processes_per_host sets another number",
    "enable_network_isolation": "request={'EnableNetworkIsolation': True} and vendor='wheels'",
    "enable_sagemaker_metrics": "metrics: a list of names",
    "encrypt_inter_container_traffic": "request={'EnableInterContainerTrafficEncryption': True}",
    "entry_point": "entry",
    "git_config": "source_dir: clone the repository and give the folder",
    "image_name": "image_uri",
    "input_data_config": "inputs",
    "input_mode": "inputs={'train': smkit.Input('s3://...', mode='FastFile')}",
    "instance_groups": "request={'ResourceConfig': {'InstanceGroups': [...]}}",
    "job_name": "name",
    "keep_alive_period_in_seconds": "keep_alive_minutes",
    "max_retry_attempts": "retries",
    "max_run": "max_hours, in hours",
    "max_wait": "request={'StoppingCondition': {'MaxWaitTimeInSeconds': ...}}",
    "metric_definitions": "metrics, a list of names; or request={'AlgorithmSpecification': {'MetricDefinitions': ...}}",
    "model_dir": "nothing: the script writes its model to SM_MODEL_DIR, /opt/ml/model",
    "networking": "request={'VpcConfig': {'Subnets': [...], 'SecurityGroupIds': [...]}}",
    "output_data_config": "bucket, or request={'OutputDataConfig': {'S3OutputPath': ...}}",
    "output_kms_key": "request={'OutputDataConfig': {'KmsKeyId': ...}}",
    "output_path": "bucket, or request={'OutputDataConfig': {'S3OutputPath': ...}}",
    "profiler_config": "request={'ProfilerConfig': {...}}",
    "rules": "request={'DebugRuleConfigurations': [...], 'ProfilerRuleConfigurations': [...]}",
    "sagemaker_session": "session",
    "script_mode": "nothing: every launch runs a script",
    "security_group_ids": "request={'VpcConfig': {'Subnets': [...], 'SecurityGroupIds': [...]}}",
    "source_code": "entry and source_dir",
    "stopping_condition": "max_hours",
    "subnets": "request={'VpcConfig': {'Subnets': [...], 'SecurityGroupIds': [...]}}",
    "tensorboard_output_config": "nothing: TensorBoard's files go to the job's tensorboard-output; or "
    "request={'TensorBoardOutputConfig': {...}}",
    "train_instance_count": "instance_count",
    "train_instance_type": "instance_type",
    "train_max_run": "max_hours, in hours",
    "train_max_wait": "request={'StoppingCondition': {'MaxWaitTimeInSeconds': ...}}",
    "train_use_spot_instances": "spot",
    "train_volume_kms_key": "request={'ResourceConfig': {'VolumeKmsKeyId': ...}}",
    "train_volume_size": "request={'ResourceConfig': {'VolumeSizeInGB': ...}}",
    "training_image": "image_uri",
    "training_input_mode": "inputs={'train': smkit.Input('s3://...', mode='FastFile')}",
    "use_spot_instances": "spot",
    "volume_kms_key": "request={'ResourceConfig': {'VolumeKmsKeyId': ...}}",
    "volume_size": "request={'ResourceConfig': {'VolumeSizeInGB': ...}}",
}


def problems(words: Iterable[str], *, known: Iterable[str]) -> Iterator[str]:
    """Say for each word that is no argument of `launch` which one is meant.

    Args:
        words: The arguments that `launch` does not have.
        known: Those that it has.
    """
    choices = list(known)
    for word in words:
        if word in _NEW_WORDS:
            yield f"{word}: the estimator's word; launch's is {_NEW_WORDS[word]}"
        else:
            yield f"{word}: launch has no such argument{did_you_mean(word, choices)}"
