"""What reaches into mmengine, mmseg or torch beyond their public names."""
