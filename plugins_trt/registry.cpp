// What TensorRT asks a plugin library for: its creators. Found through IPluginRegistry::loadLibrary only.
#include "common/plugin.h"

extern "C" {

// TensorRT calls this first, with a way to its logger, which we have no use for (see common/plugin.h).
__attribute__((visibility("default"))) void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static vrwkv::Creator wkv7(vrwkv::make_wkv7()), wkv6(vrwkv::make_wkv6()), matmul(vrwkv::make_matmul_w8()),
        read_state(vrwkv::make_read_state());
    static nvinfer1::IPluginCreatorInterface* const all[] = {&wkv7, &wkv6, &matmul, &read_state};
    count = static_cast<int32_t>(sizeof all / sizeof all[0]);
    return all;
}
}
